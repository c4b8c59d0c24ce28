"""Which models are loaded: the only writer of their state. Requests hold a lease while they run."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tenuto.engine.base import Backend, Engine, Prompts
from tenuto.engine.types import ModelFacts
from tenuto.errors import CheckpointError, EngineStartError, NotLoaded, TenutoError, Unavailable
from tenuto.models.registry import Entry, Registry

logger = logging.getLogger(__name__)
State = Literal["cold", "loading", "ready", "failed"]


@dataclass
class Slot:
    """One registered model. `engine` is set exactly while the state is ready."""

    entry: Entry
    state: State = "cold"
    reason: str | None = None
    engine: Engine | None = None
    leases: int = 0
    prompts: asyncio.Task[Prompts] | None = None
    watch: asyncio.Task[None] | None = None

    def facts(self) -> ModelFacts | None:
        """Known once the prompts were made."""
        made = self.prompts is not None and self.prompts.done() and not self.prompts.cancelled()
        if self.prompts is None or not made or self.prompts.exception() is not None:
            return None
        return self.prompts.result().facts


class Lease:
    """The right to use an engine; release it when the request has left the engine."""

    def __init__(self, slot: Slot, engine: Engine) -> None:
        self.engine = engine
        self._slot = slot
        slot.leases += 1

    def release(self) -> None:
        self._slot.leases -= 1


@dataclass
class Pool:
    registry: Registry
    backend: Backend
    slots: dict[str, Slot] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {entry.id: Slot(entry) for entry in self.registry.present()}

    async def load(self, ids: Sequence[str]) -> None:
        """Loads the models one after the other. Errors: `EngineStartError`, `CheckpointError`."""
        for model_id in ids:
            self.slots[model_id].state = "loading"
        for model_id in ids:
            await self._load(self.slots[model_id])

    async def prompts(self, entry: Entry) -> Prompts:
        """Made on first use, once, without the model's weights. Errors: `Unavailable`."""
        try:
            return await self._prompts(self.slots[entry.id])
        except (EngineStartError, CheckpointError) as error:
            logger.error("%s", error.message)
            raise NotLoaded(f"{entry.id} cannot be used: its tokenizer did not load.") from None

    def lease(self, entry: Entry) -> Lease:
        """Errors: `Unavailable`, unless the model is ready."""
        slot = self.slots[entry.id]
        if slot.engine is not None:
            return Lease(slot, slot.engine)
        if slot.state == "loading":
            raise Unavailable(f"{entry.id} is being loaded. Please retry.")
        if slot.state == "failed":
            raise NotLoaded(f"{entry.id} has failed and is not served.")
        raise NotLoaded(f"{entry.id} is not loaded: the server was started without it.")

    def unfinished(self) -> dict[str, int]:
        """Requests in each loaded engine."""
        return {
            model_id: slot.engine.stats().unfinished_requests
            for model_id, slot in self.slots.items()
            if slot.engine is not None
        }

    async def close(self, drain_s: float) -> None:
        engines = []
        for slot in self.slots.values():
            for task in (slot.watch, slot.prompts):
                if task is not None:
                    task.cancel()
            if slot.engine is not None:
                engines.append(slot.engine)
                slot.engine, slot.state = None, "cold"
        await asyncio.gather(*(engine.close(drain_s) for engine in engines))

    async def _prompts(self, slot: Slot) -> Prompts:
        if slot.prompts is None:
            slot.prompts = asyncio.create_task(self.backend.prompts(slot.entry.spec()))
        try:
            return await asyncio.shield(slot.prompts)
        except TenutoError:
            slot.prompts = None
            raise

    async def _load(self, slot: Slot) -> None:
        try:
            await self._prompts(slot)
            slot.engine = await self.backend.engine(slot.entry.spec())
        except TenutoError:
            # The reason is shown to clients; the error's own words may name a path.
            slot.state, slot.reason = "failed", "it did not load"
            raise
        slot.state = "ready"
        slot.watch = asyncio.create_task(self._watch(slot, slot.engine))

    async def _watch(self, slot: Slot, engine: Engine) -> None:
        await engine.wait_lost()
        slot.engine, slot.state, slot.reason = None, "failed", "its engine process ended"
        logger.error("model %s: its engine process ended; the model is not served", slot.entry.id)
        await engine.close(0)
