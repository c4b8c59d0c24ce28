"""Pools over a scripted backend, on a clock that a test moves by hand."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenuto.engine.fake import FakeBackend, FakeEngine, FakePrompts
from tenuto.engine.types import EngineSpec
from tenuto.models.decisions import Fits, Ids
from tenuto.models.pool import Pool, Terms
from tenuto.models.room import Place, Room
from tenuto.models.slot import Lease
from tenuto.models.waiting import Asker
from tests.conftest import make_registry


@dataclass
class ClosableEngine(FakeEngine):
    """Ends when it is `let_go`; counts how often it was closed."""

    closed: int = 0
    close_error: Exception | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def close(self, drain_s: float) -> None:
        self.closed += 1
        await self.let_go.wait()
        await super().close(drain_s)
        if self.close_error is not None:
            raise self.close_error


@dataclass
class HeldBackend(FakeBackend):
    """Starts engines while `told` is set, and notes each start; `errors` are those of the next
    starts, and of the next prompts `prompt_errors`. With `is_held` no engine answers before its
    `go` is set."""

    capacity: int = 1024
    is_held: bool = False
    errors: list[BaseException] = field(default_factory=list)
    prompt_errors: list[BaseException] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    prompted: list[str] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    engines_made: list[ClosableEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.told.set()

    async def prompts(self, spec: EngineSpec) -> FakePrompts:
        self.prompted.append(spec.model_id)
        if self.prompt_errors:
            raise self.prompt_errors.pop(0)
        return await super().prompts(spec)

    async def engine(self, spec: EngineSpec) -> FakeEngine:
        self.starts.append(spec.model_id)
        await self.told.wait()
        if self.errors:
            raise self.errors.pop(0)
        await super().engine(spec)
        can_sleep = self.can_sleep and spec.sleep
        engine = ClosableEngine(self.reply, self.capacity, can_sleep=can_sleep)
        if self.is_held:
            engine.go.clear()
        self.engines_made.append(engine)
        self.engines[spec.model_id] = engine
        return engine


@dataclass
class Clock:
    """Stands still until it is told to move; nobody who waits in the pool sees real time."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    async def advance(self, pool: Pool, seconds: float) -> None:
        await settled()
        self.now += seconds
        pool.changed.set()
        await settled()


@dataclass
class Rig:
    pool: Pool
    backend: HeldBackend
    clock: Clock

    def lease(
        self, model: str, sequences: int = 1, key: str = "", priority: int = 0
    ) -> "asyncio.Task[Lease]":
        """Someone who asks for a model."""
        entry = self.pool.slots[model].entry
        return asyncio.create_task(self.pool.lease(entry, sequences, Asker(key, priority)))

    async def leased(self, model: str, sequences: int = 1, key: str = "") -> Lease:
        """For a model that can be had at once."""
        async with asyncio.timeout(5):
            return await self.lease(model, sequences, key)

    async def used(self, *models: str) -> None:
        for model in models:
            (await self.leased(model)).release()
            await self.pass_time(1)

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(self.pool, seconds)

    def state(self, model: str = "a") -> str:
        return self.pool.slots[model].state

    def states(self) -> dict[str, str]:
        return {name: slot.state for name, slot in self.pool.slots.items()}


async def settled() -> None:
    """All has happened that needs neither time nor an event from outside."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


@dataclass
class Limited(Room):
    """Room as a function says; notes which models have a place."""

    limit: Fits
    placed: set[str] = field(default_factory=set)

    def fits(self, awake: Ids, asleep: Ids) -> bool:
        return self.limit(awake, asleep)

    def place(self, model_id: str, awake: Ids, asleep: Ids) -> Place:
        assert self.limit(awake | {model_id}, asleep)
        self.placed.add(model_id)
        return Place()

    def vacate(self, model_id: str) -> None:
        self.placed.discard(model_id)


def only(number: int, sleeping: int = 99) -> Fits:
    """So many awake, and so many asleep beside them."""
    return lambda awake, asleep: len(awake) <= number and len(asleep) <= sleeping


@asynccontextmanager
async def pooled(
    directory: Path,
    *models: str | dict[str, Any],
    backend: HeldBackend | None = None,
    fits: Fits = lambda awake, asleep: True,
    **terms: Any,
) -> AsyncIterator[Rig]:
    """A pool that is closed at the end: nothing of it goes on, and nothing went wrong unseen."""
    rows = [{"id": row} if isinstance(row, str) else row for row in models or ("a",)]
    clock, backend = Clock(), backend or HeldBackend()
    room = Limited(fits)
    pool = Pool(make_registry(directory, rows), backend, Terms(room, clock=clock, **terms))
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    try:
        yield Rig(pool, backend, clock)
    finally:
        await pool.close(0)
        await settled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert all(slot.leases == slot.sequences == 0 for slot in pool.slots.values())
    assert all(engine.closed for engine in backend.engines_made)
    gc.collect()
    assert unseen == []
