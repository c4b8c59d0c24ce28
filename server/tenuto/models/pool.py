"""Which models are loaded: one task owns their state, requests hold a lease while they run."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from tenuto.engine.base import Backend, Prompts
from tenuto.errors import InternalError, Unavailable
from tenuto.models.decisions import Decision, decide
from tenuto.models.registry import Entry, Registry
from tenuto.models.room import Room
from tenuto.models.slot import Lease, Slot
from tenuto.models.transitions import Transitions, ended
from tenuto.models.waiting import ANYONE, Asker, Waiter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """`turn_s` is how long a busy model may keep its place while another is waited for.
    `max_wait_s` bounds the wait of one request, `max_waiting` how many wait for one model."""

    room: Room = field(default_factory=Room)
    turn_s: float = 10.0
    max_wait_s: float = 300.0
    max_waiting: int = 1024
    clock: Callable[[], float] = time.monotonic


class Pool:
    """`changed` is set when there is something to decide; `started` once the start's loads are
    over."""

    def __init__(self, registry: Registry, backend: Backend, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self.slots = {entry.id: Slot(entry) for entry in registry.present()}
        self.changed = asyncio.Event()
        self.started = asyncio.Event()
        self._backend = backend
        self._does = Transitions(
            backend, self.terms.room, self.terms.clock, self.changed, self._prompts
        )
        self._owner: asyncio.Task[None] | None = None
        self._closing = False
        self.terms.room.plan(registry.present())

    async def load(self, ids: Sequence[str]) -> None:
        """Loads the models one after the other, and waits for them as long as it takes.

        Errors: `EngineStartError`, `CheckpointError` of the first start that fails.
        """
        for model_id in ids:
            self.slots[model_id].wanted = True
        for model_id in ids:
            (await self._wait(self.slots[model_id], 0, ANYONE, max_wait_s=None)).release()
        self.started.set()

    def want(self, model_id: str) -> None:
        """Loads or wakes it when there is room without disturbing anyone, also one that failed."""
        slot = self.slots[model_id]
        if slot.state == "failed":
            slot.failed_starts, slot.retry_at = 0, 0.0
        slot.wanted, slot.dismissed = slot.state != "ready" or slot.is_stale, None
        self._wake()

    def dismiss(self, model_id: str, to: Literal["asleep", "cold"]) -> None:
        """Once its running requests have ended. What cannot sleep is unloaded; who waits then has
        it loaded again."""
        slot = self.slots[model_id]
        slot.wanted = False
        if slot.has_process():
            slot.dismissed = None if slot.state == to else to
        self._wake()

    def adopt(self, entries: Iterable[Entry]) -> None:
        """These are the models from now on. One whose entry is another object than before ends its
        running requests, goes, and comes back if it was loaded; the others do not notice."""
        by_id = {entry.id: entry for entry in entries}
        for model_id, slot in list(self.slots.items()):
            if slot.entry is not by_id.get(model_id):
                self._replace(slot, by_id.get(model_id))
        for model_id, entry in by_id.items():
            self.slots.setdefault(model_id, Slot(entry)).is_removed = False
        self.terms.room.plan(by_id.values())
        self._wake()

    async def prompts(self, entry: Entry) -> Prompts:
        """Made on first use, once, without the model's weights. Errors: `Unavailable`."""
        slot = self._slot(entry)
        try:
            return await slot.usable(self._prompts(slot))
        except asyncio.CancelledError:
            if self._closing:
                raise _shutting_down() from None
            raise

    async def lease(self, entry: Entry, sequences: int = 1, asker: Asker = ANYONE) -> Lease:
        """Waits until the model is loaded and its engine has room for so many sequences; who no
        longer waits is forgotten. Errors: `Unavailable`."""
        slot = self._slot(entry)
        engine = slot.granted(sequences)
        if engine is not None and not slot.queue:
            return Lease(slot, engine, sequences, self._released)
        max_wait_s = min(asker.patience_s, self.terms.max_wait_s)
        self._refuse_surplus(slot, max_wait_s)
        return await self._wait(slot, sequences, asker, max_wait_s)

    def is_ready(self, entry: Entry) -> bool:
        slot = self.slots.get(entry.id)
        return slot is not None and slot.is_open()

    async def close(self, drain_s: float) -> None:
        """Ends all engines, the start's own loading, and every other wait with an error."""
        self._closing = True
        tasks = [self._owner, *(slot.prompts for slot in self.slots.values())]
        ends: list[Awaitable[Any]] = [*filter(None, tasks), *self._does.ending]
        for task in filter(None, tasks):
            task.cancel()
        for slot in self.slots.values():
            _dismiss_owners(slot)
            slot.refuse(_shutting_down())
            ends.append(ended(slot.state, slot.work, slot.engine, drain_s))
            slot.engine, slot.state, slot.work = None, "cold", None
        for result in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(result, Exception):
                logger.error("while the models were closed: %r", result)

    def _slot(self, entry: Entry) -> Slot:
        """Errors: `Unavailable` for a model whose entry has changed since the request began."""
        slot = self.slots.get(entry.id)
        if slot is None or slot.entry is not entry or slot.is_removed:
            raise _changed(entry)
        return slot

    def _replace(self, slot: Slot, entry: Entry | None) -> None:
        slot.refuse(_changed(slot.entry))
        slot.is_removed = entry is None
        slot.is_stale = slot.has_process()
        slot.wanted = entry is not None and slot.is_stale
        if entry is not None:
            slot.entry, slot.prompts = entry, None
        if slot.state == "failed":
            slot.state, slot.reason, slot.failed_starts, slot.retry_at = "cold", None, 0, 0.0

    def _released(self, slot: Slot) -> None:
        slot.used_at = self.terms.clock()
        # Of others that run the end changes nothing, and the owner looks at every model.
        if slot.queue or not slot.leases:
            self.changed.set()

    async def _wait(
        self, slot: Slot, sequences: int, asker: Asker, max_wait_s: float | None
    ) -> Lease:
        if self._closing:
            raise _shutting_down()
        if slot.retry_at == math.inf:
            raise slot.gone()
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiter = Waiter(granted, self.terms.clock(), sequences, asker)
        slot.queue.add(waiter)
        self._wake()
        try:
            done, _ = await asyncio.wait({granted}, timeout=max_wait_s)
        except asyncio.CancelledError:
            self._forget(slot, waiter)
            raise
        if not done:
            self._forget(slot, waiter)
            raise self._not_now(slot, f"was not ready within {max_wait_s:g} s")
        return granted.result()

    def _forget(self, slot: Slot, waiter: Waiter) -> None:
        """It may have got its lease in the moment in which it left."""
        slot.queue.remove(waiter)
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().release()
        self.changed.set()

    def _wake(self) -> None:
        if self._owner is None and not self._closing:
            self._owner = asyncio.create_task(self._own())
        self.changed.set()

    async def _own(self) -> None:
        """The only writer of every slot's state."""
        while True:
            self.changed.clear()
            try:
                again_at = self._turn()
            except Exception:
                # Without it everyone would wait, for ever, for an owner that is gone.
                logger.exception("the models' owner failed")
                again_at = math.inf
                for slot in self.slots.values():
                    slot.refuse(InternalError())
            wait_s = again_at - self.terms.clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait_s == math.inf else max(wait_s, 0)):
                    await self.changed.wait()

    def _turn(self) -> float:
        """Returns when the next one is due though nothing has happened."""
        for slot in self.slots.values():
            self._does.collect(slot)
        self._drop_removed()
        decision = self._decide()
        self._does.apply(decision, self.slots)
        for slot in self.slots.values():
            self._grant(slot)
        return decision.again_at

    def _drop_removed(self) -> None:
        for model_id, slot in list(self.slots.items()):
            if slot.is_removed and not slot.has_process():
                del self.slots[model_id]

    def _decide(self) -> Decision:
        snapshots = [slot.snapshot() for slot in self.slots.values()]
        return decide(snapshots, self.terms.room.fits, self.terms.clock(), self.terms.turn_s)

    def _grant(self, slot: Slot) -> None:
        while (waiter := slot.queue.first()) and (engine := slot.granted(waiter.sequences)):
            slot.queue.take()
            waiter.granted.set_result(Lease(slot, engine, waiter.sequences, self._released))

    def _refuse_surplus(self, slot: Slot, max_wait_s: float) -> None:
        if len(slot.queue) >= self.terms.max_waiting:
            raise self._not_now(slot, f"has {len(slot.queue)} requests waiting")
        # Of one that is not even being loaded somebody must wait for the start.
        remaining_s = slot.remaining_s(self.terms.clock())
        if slot.state == "loading" and slot.load_s and remaining_s > max_wait_s:
            raise self._not_now(slot, f"takes {remaining_s:.0f} s more to load")

    def _not_now(self, slot: Slot, what: str) -> Unavailable:
        remaining_s = slot.remaining_s(self.terms.clock())
        retry_after_s = math.ceil(remaining_s + self.terms.turn_s)
        return Unavailable(f"{slot.entry.id} {what}. Please retry.", retry_after_s=retry_after_s)

    async def _prompts(self, slot: Slot) -> Prompts:
        if slot.prompts is None and self._closing:
            raise _shutting_down()
        return await slot.made_prompts(self._backend)


def _shutting_down() -> Unavailable:
    return Unavailable("The server is shutting down. Please retry.")


def _changed(entry: Entry) -> Unavailable:
    message = f"{entry.id} was changed in the server's registry just now. Please retry."
    return Unavailable(message, retry_after_s=1)


def _dismiss_owners(slot: Slot) -> None:
    """The server's end is no failure of its start."""
    for waiter in list(slot.queue):
        if waiter.sequences == 0:
            slot.queue.remove(waiter)
            waiter.granted.cancel()
