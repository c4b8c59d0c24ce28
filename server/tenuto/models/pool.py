"""Which models are loaded: one task owns their state, requests hold a lease while they run."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tenuto.engine.base import Backend, Engine, Prompts
from tenuto.engine.types import ModelFacts
from tenuto.errors import (
    ApiError,
    CheckpointError,
    EngineLost,
    EngineStartError,
    InternalError,
    NotLoaded,
    TenutoError,
    Unavailable,
)
from tenuto.models.decisions import Decision, Fits, Snapshot, State, decide
from tenuto.models.registry import Entry, Registry
from tenuto.models.waiting import Queue, Waiter

logger = logging.getLogger(__name__)
MAX_STARTS = 3
FIRST_BACK_OFF_S = 1.0
# What a load is taken to last before one was measured.
UNKNOWN_LOAD_S = 60.0
# An engine that ends so soon after its start has not really started.
STABLE_S = 60.0


@dataclass(frozen=True)
class Terms:
    """`fits` says whether these models have room together; all have without it. `turn_s` is how
    long a busy model may keep its place while another is waited for. `max_wait_s` and
    `max_waiting` bound the wait of one request, and how many wait for one model."""

    fits: Fits = lambda models: True
    turn_s: float = 10.0
    max_wait_s: float = 300.0
    max_waiting: int = 1024
    clock: Callable[[], float] = time.monotonic


@dataclass
class Slot:
    """One registered model. `engine` is set exactly while the state is ready or unloading; `work`
    is what changes the state next."""

    entry: Entry
    state: State = "cold"
    reason: str | None = None
    engine: Engine | None = None
    leases: int = 0
    sequences: int = 0
    held: bool = False
    is_lost: bool = False
    wanted: bool = False
    used_at: float = 0.0
    ready_at: float = 0.0
    retry_at: float = 0.0
    failed_starts: int = 0
    load_s: float | None = None
    queue: Queue = field(default_factory=Queue)
    prompts: asyncio.Task[Prompts] | None = None
    work: asyncio.Task[Any] | None = None

    def facts(self) -> ModelFacts | None:
        """Known once the prompts were made."""
        made = self.prompts is not None and self.prompts.done() and not self.prompts.cancelled()
        if self.prompts is None or not made or self.prompts.exception() is not None:
            return None
        return self.prompts.result().facts

    def granted(self, sequences: int) -> Engine | None:
        """The engine, when it takes so many more; a request that alone is too large runs alone."""
        if self.engine is None or self.state != "ready" or self.held or self.is_lost:
            return None
        has_room = self.sequences + sequences <= self.engine.capacity
        return self.engine if has_room or self.sequences == 0 else None

    def snapshot(self) -> Snapshot:
        return Snapshot(
            id=self.entry.id,
            state=self.state,
            leases=self.leases,
            waiting_since=self.queue.since(),
            used_at=self.used_at,
            ready_at=self.ready_at,
            retry_at=self.retry_at,
            wanted=self.wanted,
            pinned=self.entry.pinned,
            idle_ttl_s=self.entry.idle_ttl,
        )


class Lease:
    """The right to use an engine; release it when the request has left the engine."""

    def __init__(self, pool: "Pool", slot: Slot, engine: Engine, sequences: int) -> None:
        self.engine = engine
        self._pool, self._slot, self._sequences = pool, slot, sequences
        slot.leases += 1
        slot.sequences += sequences

    @contextmanager
    def watched(self) -> Iterator[Engine]:
        """A request may hear of a loss before the engine's process has ended; from then on nobody
        gets this engine, least of all the same request once more."""
        try:
            yield self.engine
        except EngineLost:
            if self._slot.engine is self.engine and self._slot.work is not None:
                self._slot.is_lost = True
                self._slot.work.cancel()
            raise

    def release(self) -> None:
        self._slot.leases -= 1
        self._slot.sequences -= self._sequences
        self._slot.used_at = self._pool.terms.clock()
        self._pool.changed.set()


@dataclass
class Pool:
    registry: Registry
    backend: Backend
    terms: Terms = field(default_factory=Terms)
    slots: dict[str, Slot] = field(init=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    _owner: asyncio.Task[None] | None = None
    _ending: set[asyncio.Task[None]] = field(default_factory=set)
    _closing: bool = False

    def __post_init__(self) -> None:
        self.slots = {entry.id: Slot(entry) for entry in self.registry.present()}

    async def load(self, ids: Sequence[str]) -> None:
        """Loads the models one after the other, and waits for them as long as it takes.

        Errors: `EngineStartError`, `CheckpointError` of the first start that fails.
        """
        for model_id in ids:
            self.slots[model_id].wanted = True
        for model_id in ids:
            (await self._wait(self.slots[model_id], sequences=0, key="", max_wait_s=None)).release()
        self.started = True

    async def prompts(self, entry: Entry) -> Prompts:
        """Made on first use, once, without the model's weights. Errors: `Unavailable`."""
        try:
            return await self._prompts(self.slots[entry.id])
        except asyncio.CancelledError:
            if self._closing:
                raise _shutting_down() from None
            raise
        except (EngineStartError, CheckpointError) as error:
            logger.error("%s", error.message)
            raise NotLoaded(f"{entry.id} cannot be used: its tokenizer did not load.") from None

    async def lease(self, entry: Entry, sequences: int = 1, key: str = "") -> Lease:
        """Waits until the model is loaded and its engine has room for so many sequences; who no
        longer waits is forgotten. Errors: `Unavailable`."""
        slot = self.slots[entry.id]
        engine = slot.granted(sequences)
        if engine is not None and not slot.queue:
            return Lease(self, slot, engine, sequences)
        self._refuse_surplus(slot)
        return await self._wait(slot, sequences, key, self.terms.max_wait_s)

    def unfinished(self) -> dict[str, int]:
        """Requests in each loaded engine."""
        return {
            model_id: slot.engine.stats().unfinished_requests
            for model_id, slot in self.slots.items()
            if slot.engine is not None
        }

    async def close(self, drain_s: float) -> None:
        """Ends all engines, the start's own loading, and every other wait with an error."""
        self._closing = True
        tasks = [self._owner, *(slot.prompts for slot in self.slots.values())]
        ends: list[Awaitable[Any]] = [*filter(None, tasks), *self._ending]
        for task in filter(None, tasks):
            task.cancel()
        for slot in self.slots.values():
            _dismiss(slot)
            ends.append(_ended(slot.state, slot.work, slot.engine, drain_s))
            slot.engine, slot.state, slot.work = None, "cold", None
        for result in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(result, Exception):
                logger.error("while the models were closed: %r", result)

    async def _wait(self, slot: Slot, sequences: int, key: str, max_wait_s: float | None) -> Lease:
        if self._closing:
            raise _shutting_down()
        if slot.retry_at == math.inf:
            raise _gone(slot)
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiter = Waiter(granted, self.terms.clock(), sequences, key)
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
                    _refuse(slot, InternalError())
            wait_s = again_at - self.terms.clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait_s == math.inf else max(wait_s, 0)):
                    await self.changed.wait()

    def _turn(self) -> float:
        """Returns when the next one is due though nothing has happened."""
        for slot in self.slots.values():
            self._collect(slot)
        decision = self._decide()
        self._apply(decision)
        for slot in self.slots.values():
            self._grant(slot)
        return decision.again_at

    def _decide(self) -> Decision:
        snapshots = [slot.snapshot() for slot in self.slots.values()]
        return decide(snapshots, self.terms.fits, self.terms.clock(), self.terms.turn_s)

    def _apply(self, decision: Decision) -> None:
        for slot in self.slots.values():
            slot.held = slot.entry.id in decision.hold
        for model_id in decision.impossible:
            self._give_up(self.slots[model_id], "it is larger than the memory for models")
        for model_id in decision.unload:
            slot = self.slots[model_id]
            assert slot.engine is not None
            logger.info("model %s: unloading", model_id)
            slot.state = "unloading"
            self._begin(slot, slot.engine.close(0))
        if decision.load is not None:
            slot = self.slots[decision.load]
            slot.state, slot.reason, slot.ready_at = "loading", None, self.terms.clock()
            self._begin(slot, self._engine(slot))

    def _begin(self, slot: Slot, work: Coroutine[Any, Any, Any]) -> None:
        if slot.work is not None:
            slot.work.cancel()
        slot.work = asyncio.create_task(work)
        slot.work.add_done_callback(lambda _: self.changed.set())

    async def _engine(self, slot: Slot) -> Engine:
        await self._prompts(slot)
        if self._ending:
            # What was lost may have memory until it is closed.
            await asyncio.wait(set(self._ending))
        return await self.backend.engine(slot.entry.spec())

    def _collect(self, slot: Slot) -> None:
        """What became of the work that was begun."""
        if slot.work is None or not slot.work.done():
            return
        work, slot.work = slot.work, None
        error = _error_of(work)
        match slot.state:
            case "loading" if error is not None:
                self._failed(slot, error)
            case "loading":
                self._loaded(slot, work.result())
            case "ready":
                self._lost(slot)
            case "unloading":
                if error is not None:
                    logger.error("model %s: did not unload: %r", slot.entry.id, error)
                slot.engine, slot.state, slot.failed_starts = None, "cold", 0

    def _loaded(self, slot: Slot, engine: Engine) -> None:
        now = self.terms.clock()
        slot.engine, slot.state, slot.wanted, slot.is_lost = engine, "ready", False, False
        slot.load_s, slot.ready_at, slot.used_at = now - slot.ready_at, now, now
        self._begin(slot, engine.wait_lost())

    def _failed(self, slot: Slot, error: BaseException) -> None:
        """Who waits goes on waiting for the next start; the owner's own load does not."""
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

    def _lost(self, slot: Slot) -> None:
        logger.error("model %s: its engine process ended", slot.entry.id)
        now, engine = self.terms.clock(), slot.engine
        assert engine is not None
        slot.engine, slot.wanted = None, True
        if now - slot.ready_at > STABLE_S:
            slot.failed_starts = 0
        ending = asyncio.create_task(_closed(engine))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        self._back_off(slot, "its engine process ended")

    def _back_off(self, slot: Slot, reason: str) -> None:
        slot.failed_starts += 1
        if slot.failed_starts >= MAX_STARTS:
            self._give_up(slot, reason)
            return
        wait_s = FIRST_BACK_OFF_S * 2 ** (slot.failed_starts - 1)
        slot.state, slot.reason, slot.retry_at = "failed", reason, self.terms.clock() + wait_s

    def _give_up(self, slot: Slot, reason: str) -> None:
        logger.error("model %s is not served: %s", slot.entry.id, reason)
        slot.state, slot.reason, slot.retry_at, slot.wanted = "failed", reason, math.inf, False
        _refuse(slot, _gone(slot))

    def _grant(self, slot: Slot) -> None:
        while (waiter := slot.queue.first()) and (engine := slot.granted(waiter.sequences)):
            slot.queue.take()
            waiter.granted.set_result(Lease(self, slot, engine, waiter.sequences))

    def _refuse_surplus(self, slot: Slot) -> None:
        if len(slot.queue) >= self.terms.max_waiting:
            raise self._not_now(slot, f"has {len(slot.queue)} requests waiting")
        # Of one that is not even being loaded somebody must wait for the start.
        if slot.state == "loading" and (slot.load_s or 0) > self.terms.max_wait_s:
            raise self._not_now(slot, f"takes {slot.load_s:.0f} s to load")

    def _not_now(self, slot: Slot, what: str) -> Unavailable:
        load_s = 0.0 if slot.engine is not None else slot.load_s or UNKNOWN_LOAD_S
        retry_after_s = math.ceil(load_s + self.terms.turn_s)
        return Unavailable(f"{slot.entry.id} {what}. Please retry.", retry_after_s=retry_after_s)

    async def _prompts(self, slot: Slot) -> Prompts:
        if slot.prompts is None:
            if self._closing:
                raise _shutting_down()
            slot.prompts = asyncio.create_task(self.backend.prompts(slot.entry.spec()))
            slot.prompts.add_done_callback(lambda made: _unless_made(slot, made))
        return await asyncio.shield(slot.prompts)


async def _closed(engine: Engine) -> None:
    try:
        await engine.close(0)
    except Exception as error:
        logger.error("a lost engine did not close: %r", error)


async def _ended(
    state: State, work: asyncio.Task[Any] | None, engine: Engine | None, drain_s: float
) -> None:
    """Also the engine of a load that ended in the moment in which it was cancelled."""
    if work is not None and state == "unloading":
        await work
        return
    if work is not None:
        work.cancel()
        await asyncio.wait({work})
        if _error_of(work) is None and state == "loading":
            engine = work.result()
    if engine is not None:
        await engine.close(drain_s)


def _unless_made(slot: Slot, made: asyncio.Task[Prompts]) -> None:
    """Prompts that failed are made again for the next request."""
    if _error_of(made) is not None and slot.prompts is made:
        slot.prompts = None


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _shutting_down() -> Unavailable:
    return Unavailable("The server is shutting down. Please retry.")


def _gone(slot: Slot) -> NotLoaded:
    return NotLoaded(f"{slot.entry.id} has failed and is not served: {slot.reason}.")


def _refuse(slot: Slot, error: ApiError) -> None:
    for waiter in list(slot.queue):
        slot.queue.remove(waiter)
        waiter.granted.set_exception(error)


def _dismiss(slot: Slot) -> None:
    """The server's end is no failure of its start."""
    for waiter in list(slot.queue):
        if waiter.sequences == 0:
            slot.queue.remove(waiter)
            waiter.granted.cancel()
    _refuse(slot, _shutting_down())
