"""What is done to models, and what became of it: the pool's owner's hands."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenuto.engine.base import Backend, Engine, Prompts
from tenuto.engine.types import Canary
from tenuto.errors import EngineLost, EngineStartError, TenutoError
from tenuto.models.decisions import AWAKE, Decision, Ids, State
from tenuto.models.room import Room, placed
from tenuto.models.slot import Slot

logger = logging.getLogger(__name__)
MAX_STARTS = 3
FIRST_BACK_OFF_S = 1.0
# An engine that ends so soon after its start has not really started.
STABLE_S = 60.0


@dataclass
class Transitions:
    """`prompts` makes those of a slot; `changed` is set whenever some work has ended."""

    backend: Backend
    room: Room
    clock: Callable[[], float]
    changed: asyncio.Event
    prompts: Callable[[Slot], Coroutine[Any, Any, Prompts]]
    ending: set[asyncio.Task[None]] = field(default_factory=set)

    def apply(self, decision: Decision, slots: Mapping[str, Slot]) -> None:
        for slot in slots.values():
            slot.held = slot.entry.id in decision.hold
        for model_id in decision.impossible:
            # Later, when a pinned model has gone, it may not be.
            _give_up(slots[model_id], "it is larger than the memory for models", retry_at=0.0)
        for model_id in decision.evicted:
            slots[model_id].done.evictions += 1
        for model_id in decision.suspend:
            self._suspend(slots[model_id])
        for model_id in decision.unload:
            self._unload(slots[model_id])
        if decision.load is not None:
            self._load(slots[decision.load], slots)

    def collect(self, slot: Slot) -> None:
        """What became of the work that was begun."""
        if slot.work is None or not slot.work.done():
            return
        work, slot.work = slot.work, None
        error = error_of(work)
        match slot.state:
            case "loading" if error is not None:
                self._failed(slot, error)
            case "loading":
                slot.engine, slot.canary = work.result()
                slot.load_s = self._done(slot, "load")
                self._ready(slot)
            case "suspending" if error is None:
                slot.state = "asleep"
                self._done(slot, "sleep")
                self.room.slept(slot.entry.id)
                if slot.dismissed == "asleep":
                    slot.dismissed = None
                self._watch(slot)
            case "waking" if error is None and work.result():
                slot.wake_s = self._done(slot, "wake")
                self._ready(slot)
            case "waking" if error is None:
                self._garbled(slot)
            case "unloading":
                if error is not None:
                    logger.error("model %s: did not unload: %r", slot.entry.id, error)
                slot.state, slot.failed_starts = "cold", 0
                self._done(slot, "unload")
                self._left(slot)
            case _:
                self._lost(slot, error)

    def _done(self, slot: Slot, what: str) -> float:
        return slot.done.add(what, self.clock() - slot.began_at)

    def _begin(self, slot: Slot, work: Coroutine[Any, Any, Any]) -> None:
        if slot.work is not None:
            slot.work.cancel()
        slot.began_at = self.clock()
        slot.work = asyncio.create_task(work)
        slot.work.add_done_callback(lambda _: self.changed.set())

    def _watch(self, slot: Slot) -> None:
        assert slot.engine is not None
        self._begin(slot, slot.engine.wait_lost())

    def _load(self, slot: Slot, slots: Mapping[str, Slot]) -> None:
        slot.reason = None
        if slot.engine is not None:
            logger.info("model %s: waking", slot.entry.id)
            slot.state = "waking"
            self._begin(slot, self._awake(slot.engine, slot.canary))
            return
        awake: Ids = frozenset(name for name, other in slots.items() if other.state in AWAKE)
        asleep: Ids = frozenset(name for name, other in slots.items() if other.state == "asleep")
        slot.place = self.room.place(slot.entry.id, awake, asleep)
        slot.state = "loading"
        self._begin(slot, self._started(slot))

    def _suspend(self, slot: Slot) -> None:
        """Nobody has a lease: vLLM would end the running requests as if they had finished."""
        assert slot.engine is not None
        assert slot.leases == 0
        level = slot.entry.sleep_level
        assert level != 0
        logger.info("model %s: going to sleep, level %d", slot.entry.id, level)
        slot.state = "suspending"
        self._begin(slot, slot.engine.sleep(level))

    def _unload(self, slot: Slot) -> None:
        assert slot.engine is not None
        assert slot.leases == 0
        logger.info("model %s: unloading", slot.entry.id)
        slot.state = "unloading"
        self._begin(slot, slot.engine.close(0))

    async def _started(self, slot: Slot) -> tuple[Engine, Canary | None]:
        await self.prompts(slot)
        await self._all_ended()
        assert slot.place is not None
        engine = await self.backend.engine(placed(slot.entry, slot.place))
        try:
            return engine, await engine.check() if engine.can_sleep else None
        except BaseException:
            await engine.close(0)
            raise

    async def _awake(self, engine: Engine, canary: Canary | None) -> bool:
        """Whether the engine still answers as it did when it was new."""
        await self._all_ended()
        await engine.wake()
        return canary is None or canary.agrees(await engine.check())

    async def _all_ended(self) -> None:
        """What was lost may have memory until it is closed."""
        if self.ending:
            await asyncio.wait(set(self.ending))

    def _ready(self, slot: Slot) -> None:
        now = self.clock()
        slot.state, slot.is_lost = "ready", False
        # One whose entry has changed since is to come back.
        slot.wanted = slot.wanted and slot.is_stale
        slot.ready_at = slot.used_at = now
        self._watch(slot)

    def _left(self, slot: Slot) -> None:
        slot.engine = slot.canary = slot.place = slot.dismissed = None
        slot.is_stale = False
        self.room.vacate(slot.entry.id)

    def _failed(self, slot: Slot, error: BaseException) -> None:
        """Who waits goes on waiting for the next start; the owner's own load does not."""
        slot.done.failures += 1
        self._left(slot)
        unknown = EngineStartError(f"model {slot.entry.id}: did not start: {error!r}")
        known = error if isinstance(error, TenutoError) else unknown
        owners = [waiter for waiter in slot.queue if waiter.sequences == 0]
        for waiter in owners:
            slot.queue.remove(waiter)
            waiter.granted.set_exception(known)
        # Whoever asked for the load says so himself.
        if not owners:
            logger.error("%s", known.message)
        # The reason is shown to clients; the error's own words may name a path.
        self._back_off(slot, "it did not load")

    def _lost(self, slot: Slot, error: BaseException | None) -> None:
        logger.error("model %s: its engine process ended", slot.entry.id)
        slot.done.failures += 1
        if not isinstance(error, EngineLost | asyncio.CancelledError | None):
            logger.error("model %s: while it was %s: %r", slot.entry.id, slot.state, error)
        if self.clock() - slot.ready_at > STABLE_S:
            slot.failed_starts = 0
        was_asleep, goes = slot.state == "asleep", slot.dismissed is not None
        self._end(slot)
        if was_asleep:
            slot.state = "cold"
            return
        slot.wanted = not goes
        self._back_off(slot, "its engine process ended")

    def _garbled(self, slot: Slot) -> None:
        """A wake that left other weights behind than the load did."""
        logger.error(
            "model %s: answered otherwise after its sleep than before; it is loaded anew",
            slot.entry.id,
        )
        slot.failed_wakes += 1
        self._end(slot)
        slot.state, slot.wanted = "cold", True

    def _end(self, slot: Slot) -> None:
        assert slot.engine is not None
        ending = asyncio.create_task(_closed(slot.engine))
        self.ending.add(ending)
        ending.add_done_callback(self.ending.discard)
        self._left(slot)

    def _back_off(self, slot: Slot, reason: str) -> None:
        slot.failed_starts += 1
        if slot.failed_starts >= MAX_STARTS:
            _give_up(slot, reason)
            return
        wait_s = FIRST_BACK_OFF_S * 2 ** (slot.failed_starts - 1)
        slot.state, slot.reason, slot.retry_at = "failed", reason, self.clock() + wait_s


def error_of(task: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def ended(
    state: State, work: asyncio.Task[Any] | None, engine: Engine | None, drain_s: float
) -> None:
    """The engine is closed, whatever was being done to it; also that of a load that ended in the
    moment in which it was cancelled."""
    if work is not None and state == "unloading":
        await work
        return
    if work is not None:
        work.cancel()
        await asyncio.wait({work})
        if error_of(work) is None and state == "loading":
            engine, _ = work.result()
    if engine is not None:
        await engine.close(drain_s)


def _give_up(slot: Slot, reason: str, **when: float) -> None:
    logger.error("model %s is not served: %s", slot.entry.id, reason)
    slot.give_up(reason, **when)


async def _closed(engine: Engine) -> None:
    try:
        await engine.close(0)
    except Exception as error:
        logger.error("a lost engine did not close: %r", error)
