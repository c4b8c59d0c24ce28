"""How the models are and were in the last minutes, and what the conformance kit said last."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from tenuto import __version__
from tenuto.api.admin import common_fields
from tenuto.api.body import json_response
from tenuto.api.exchange import exchange_of
from tenuto.api.services import Services, may_use
from tenuto.errors import BadRequest, CheckpointError, NotFound, quoted
from tenuto.models.registry import Target
from tenuto.models.sizes import weights_bytes
from tenuto.models.slot import Slot
from tenuto.observe.history import INTERVAL_S, Point
from tenuto.wire.responses import ModelHistory, ModelStatus, Status

REPORT = "conformance.json"


class StatusRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._started_at = time.time()
        self._weights_bytes: dict[Path, int] = {}

    async def status(self, request: Request) -> Response:
        """Errors: `BadRequest`."""
        since, key = _since(request.query_params.get("since")), exchange_of(request).key
        slots = self._services.pool.slots.values()
        usable = [slot for slot in slots if may_use(key, Target(slot.entry))]
        await self._weigh(slot.entry.checkpoint for slot in usable)
        models = [self._model(slot, since) for slot in usable]
        now = time.time()
        return json_response(Status(now, self._started_at, INTERVAL_S, __version__, models))

    async def conformance(self, request: Request) -> Response:
        """The report that `tenuto conform run --json` was told to leave there."""
        folder = self._services.state_dir
        report = await asyncio.to_thread(_read, folder / REPORT) if folder is not None else None
        if report is None:
            raise NotFound(
                f"There is no report yet: run `tenuto conform run … --json {REPORT}` and put the "
                "file into the server's state folder."
            )
        return Response(report, media_type="application/json")

    async def _weigh(self, checkpoints: Iterable[Path | None]) -> None:
        new = [path for path in checkpoints if path and path not in self._weights_bytes]
        if new:
            self._weights_bytes |= await asyncio.to_thread(_weights_of, new)

    def _model(self, slot: Slot, since: float) -> ModelStatus:
        entry = slot.entry
        return ModelStatus(
            **common_fields(slot),
            task=entry.task,
            weights_bytes=self._weights_bytes.get(entry.checkpoint) if entry.checkpoint else None,
            history=_history(self._services.history.since(entry.id, since)),
        )


def _weights_of(checkpoints: Iterable[Path]) -> dict[Path, int]:
    """Of those that can be read."""
    found = {}
    for checkpoint in checkpoints:
        with suppress(CheckpointError, OSError):
            found[checkpoint] = weights_bytes(checkpoint)
    return found


def _history(points: list[Point]) -> ModelHistory:
    columns = zip(*points, strict=True) if points else [() for _ in Point._fields]
    return ModelHistory(*map(list, columns))


def _since(text: str | None) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        message = f"since must be seconds since the epoch, got {quoted(text)}."
        raise BadRequest(message, param="since") from None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
