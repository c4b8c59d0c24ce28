"""A scripted cluster, and a front end's models on it."""

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenuto.engine.fake import FakeEngine
from tenuto.engine.types import Deployed, Deployment
from tenuto.models.cluster_pool import ClusterPool, name_of
from tenuto.models.registry import Entry
from tests.conftest import make_registry
from tests.models.pools import Clock, HeldBackend, settled


@dataclass
class WakingEngine(FakeEngine):
    """Its first replica starts when it is woken; with `wake_error` it does not."""

    woken: int = 0
    wake_error: Exception | None = None

    async def wake(self) -> None:
        self.woken += 1
        if self.wake_error is not None:
            raise self.wake_error


@dataclass
class FakeCluster:
    """Everything that is deployed is `ready`, unless `is_idle` keeps it cold until it is woken.
    `deploy_error` and `states_error` are raised while they are set."""

    is_idle: bool = False
    deploy_error: Exception | None = None
    states_error: Exception | None = None
    attempts: int = 0
    looks: int = 0
    deploys: list[dict[str, Deployed]] = field(default_factory=list)
    engines: dict[str, WakingEngine] = field(default_factory=dict)
    found: dict[str, tuple[Deployment, str | None]] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)
    is_closed: bool = False

    def __post_init__(self) -> None:
        self._turned = asyncio.Condition()

    async def deploy(self, models: Sequence[Deployed]) -> Mapping[str, WakingEngine]:
        self.attempts += 1
        if self.deploy_error is not None:
            await self._turn()
            raise self.deploy_error
        self.deploys.append({model.name: model for model in models})
        for model in models:
            self.engines[model.name] = WakingEngine()
            self.found.setdefault(model.name, ("cold" if self.is_idle else "ready", None))
        return {model.name: self.engines[model.name] for model in models}

    async def states(self) -> Mapping[str, tuple[Deployment, str | None]]:
        await self._turn()
        if self.states_error is not None:
            raise self.states_error
        for name, engine in self.engines.items():
            if engine.woken and name in self.found:
                self.found[name] = "ready", None
        return dict(self.found)

    async def retire(self, names: Sequence[str]) -> None:
        self.retired += names

    async def close(self) -> None:
        self.is_closed = True

    async def _turn(self) -> None:
        self.looks += 1
        async with self._turned:
            self._turned.notify_all()

    async def looked(self, times: int = 2) -> None:
        """What was so before has been seen: the second look begins after the first has ended."""
        wanted = self.looks + times
        async with asyncio.timeout(5), self._turned:
            await self._turned.wait_for(lambda: self.looks >= wanted)


@dataclass
class Rig:
    pool: ClusterPool
    cluster: FakeCluster
    backend: HeldBackend
    clock: Clock
    directory: Path

    def entry(self, model: str = "a") -> Entry:
        return self.pool.slots[model].entry

    def name(self, model: str = "a") -> str:
        return name_of(self.entry(model))

    async def loaded(self, *models: str) -> None:
        async with asyncio.timeout(5):
            await self.pool.load(models)

    async def adopt(self, *rows: dict[str, Any]) -> None:
        """As after the file was changed, once it has been seen."""
        self.pool.adopt(make_registry(self.directory, list(rows)).present())
        await self.cluster.looked()


@asynccontextmanager
async def rigged(
    directory: Path, *rows: dict[str, Any], max_wait_s: float = 5, **cluster: Any
) -> AsyncIterator[Rig]:
    """Nothing of it goes on after the end, and nothing went wrong unseen."""
    registry = make_registry(directory, list(rows))
    found, backend, clock = FakeCluster(**cluster), HeldBackend(), Clock()
    pool = ClusterPool(registry, backend, found, max_wait_s, clock)
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    try:
        yield Rig(pool, found, backend, clock, directory)
    finally:
        await pool.close(0)
        await settled()
    assert found.is_closed
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect(1)
    assert unseen == []
