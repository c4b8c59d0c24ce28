"""What the routes work with, built once in `app.py`."""

import asyncio
from dataclasses import dataclass, field

from tenuto.access.keys import Keys
from tenuto.errors import UnknownModel
from tenuto.generation.policy import Policy
from tenuto.models.pool import Pool
from tenuto.models.registry import Entry, Registry
from tenuto.observe.metrics import Metrics
from tenuto.wire.bounds import Bounds


def policy_of(entry: Entry) -> Policy:
    return Policy(entry.system_prompt, entry.tool_parser is not None)


class Gate:
    """Counts the requests inside; once it drains, lets no new one in."""

    def __init__(self) -> None:
        self.draining = False
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self._inside += 1
        self._idle.clear()

    def leave(self) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """True when the last request left in time."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True)
class Services:
    registry: Registry
    pool: Pool
    keys: Keys
    metrics: Metrics
    bounds: Bounds
    eager: tuple[str, ...] = ()
    strict_params: bool = False
    keep_alive_s: float = 15
    gate: Gate = field(default_factory=Gate)

    def entry(self, name: str, route: str) -> Entry:
        """Errors: `UnknownModel`, with advice when only the checkpoint is missing."""
        entry = self.registry.find(name)
        if entry is None:
            raise UnknownModel(route, name)
        if entry.checkpoint is None:
            raise UnknownModel(
                route,
                name,
                f" {entry.id} is registered, but its checkpoint is not on this host: run "
                f"`tenuto models pull {entry.id}` there and restart the server.",
            )
        return entry

    def ready(self) -> bool:
        states = (self.pool.slots[model_id].state for model_id in self.eager)
        return not self.gate.draining and all(state == "ready" for state in states)
