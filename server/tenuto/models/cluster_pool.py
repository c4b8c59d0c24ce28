"""The models of a cluster: what runs where is its scheduler's to decide, by the registry alone."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal

from tenuto.engine.base import Backend, Cluster, Engine, Prompts
from tenuto.engine.types import Deployed
from tenuto.errors import BadRequest, CheckpointError, EngineStartError, NotLoaded, Unavailable
from tenuto.models.registry import Entry, Registry
from tenuto.models.slot import Lease, Slot
from tenuto.models.waiting import ANYONE, Asker

logger = logging.getLogger(__name__)
# Every look costs the cluster's controller some ms, and all front ends share it: seldom, but while
# a model loads, or has just been asked without being ready.
LOOK_EVERY_S, LOOK_SOON_S, MOVING_S = 10.0, 2.0, 30.0
# Other front ends may read a changed registry so much later, and use until then what is no longer
# in it.
RETIRE_AFTER_S = 30.0
UNFIT = "its files cannot be served as they are"


class ClusterPool:
    """`tenuto.models.base.Models` of one front end: others have the same ones. A model whose entry
    changes goes on serving while its replicas are replaced."""

    def __init__(
        self,
        registry: Registry,
        backend: Backend,
        cluster: Cluster,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = {entry.id: Slot(entry) for entry in registry.present()}
        self.started = asyncio.Event()
        self._backend, self._cluster = backend, cluster
        self._max_wait_s, self._clock = max_wait_s, clock
        self._engines: dict[str, Engine] = {}
        self._asked: dict[str, Deployed] = {}
        self._unfit: dict[str, str] = {}
        self._surplus: dict[str, float] = {}
        self._retired: set[str] = set()
        self._wakes: set[asyncio.Task[None]] = set()
        self._looked = asyncio.Condition()
        self._is_changed, self._stirred, self._moving_until = True, asyncio.Event(), 0.0
        self._owner: asyncio.Task[None] | None = None
        self._problem: str | None = None
        self._is_closed = False

    async def load(self, ids: Sequence[str]) -> None:
        for model_id in ids:
            # Of others the cluster starts replicas by itself.
            if self.slots[model_id].entry.scale().min_replicas == 0:
                self.want(model_id)
        self._begin()
        async with self._looked:
            await self._looked.wait_for(lambda: self._loaded(ids))
        for slot in self._present(ids):
            await slot.made_prompts(self._backend)
        self.started.set()

    def want(self, model_id: str) -> None:
        """Has its first replica started, once it is deployed."""
        self.slots[model_id].wanted = True
        self._stir()
        self._begin()
        self._wake_wanted()

    def dismiss(self, model_id: str, to: Literal["asleep", "cold"]) -> None:
        raise BadRequest(
            f"In a cluster {model_id} runs as the registry's `replicas` say: change them there.",
            param="model",
        )

    def adopt(self, entries: Iterable[Entry]) -> None:
        by_id = {entry.id: entry for entry in entries}
        for model_id in self.slots.keys() - by_id.keys():
            del self.slots[model_id]
        for model_id, entry in by_id.items():
            slot = self.slots.setdefault(model_id, Slot(entry))
            if slot.entry is not entry:
                slot.entry, slot.prompts = entry, None
        self._is_changed = True
        self._expect_change()
        self._stirred.set()

    async def prompts(self, entry: Entry) -> Prompts:
        slot = self._slot(entry)
        return await slot.usable(slot.made_prompts(self._backend))

    async def lease(self, entry: Entry, sequences: int = 1, asker: Asker = ANYONE) -> Lease:
        """At once, when it is deployed: requests wait where they are shared out."""
        slot, name = self._slot(entry), name_of(entry)
        if name not in self._engines:
            await self._deployed(entry.id, name, min(asker.patience_s, self._max_wait_s))
        if slot.state != "ready":
            self._stir()
        return Lease(slot, self._engines[name], sequences, self._released)

    def is_ready(self, entry: Entry) -> bool:
        slot = self.slots.get(entry.id)
        return slot is not None and slot.state == "ready"

    async def close(self, drain_s: float) -> None:
        self._is_closed = True
        for task in filter(None, (self._owner, *self._wakes)):
            task.cancel()
        await self._tell()
        await self._cluster.close()

    def _slot(self, entry: Entry) -> Slot:
        """A request keeps the entry with which it began. Errors: `Unavailable` once it is gone."""
        slot = self.slots.get(entry.id)
        if slot is None:
            message = f"{entry.id} was just taken out of the server's registry. Please retry."
            raise Unavailable(message, retry_after_s=1)
        return slot if slot.entry is entry else Slot(entry)

    def _released(self, slot: Slot) -> None:
        slot.used_at = self._clock()

    async def _deployed(self, model_id: str, name: str, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._judged(name)
        except TimeoutError:
            raise Unavailable("The cluster does not answer. Please retry.") from None
        if name in self._unfit:
            raise NotLoaded(f"{model_id} is not served: {self._unfit[name]}.")

    async def _judged(self, name: str) -> None:
        """Deployed, or found unfit. Errors: `Unavailable` when the pool is closed first."""
        self._begin()

        def is_over() -> bool:
            return self._is_closed or name in self._engines or name in self._unfit

        async with self._looked:
            await self._looked.wait_for(is_over)
        if self._is_closed:
            raise Unavailable("The server is shutting down. Please retry.")

    async def _tell(self) -> None:
        async with self._looked:
            self._looked.notify_all()

    def _present(self, ids: Sequence[str]) -> list[Slot]:
        return [self.slots[model_id] for model_id in ids if model_id in self.slots]

    def _loaded(self, ids: Sequence[str]) -> bool:
        """Errors: `EngineStartError`."""
        slots = self._present(ids)
        for slot in slots:
            if slot.state == "failed":
                raise EngineStartError(f"model {slot.entry.id}: {slot.reason}")
        return not self._is_changed and all(slot.state == "ready" for slot in slots)

    def _begin(self) -> None:
        if self._owner is None and not self._is_closed:
            self._owner = asyncio.create_task(self._own())

    async def _own(self) -> None:
        """Deploys what has changed, and looks what became of it."""
        while True:
            try:
                await self._look()
                self._problem = None
            except Exception as error:
                # Whatever it is: without its owner everyone would wait, for ever.
                self._complain(error)
            await self._pause()

    async def _pause(self) -> None:
        if self._problem is not None:
            await asyncio.sleep(LOOK_SOON_S)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SOON_S if self._is_moving() else LOOK_EVERY_S):
                    await self._stirred.wait()
        self._stirred.clear()

    def _stir(self) -> None:
        """To be looked at now, unless that is so soon anyhow."""
        if not self._is_moving():
            self._stirred.set()
        self._expect_change()

    def _expect_change(self) -> None:
        self._moving_until = self._clock() + MOVING_S

    def _is_moving(self) -> bool:
        is_loading = any(slot.state == "loading" for slot in self.slots.values())
        return is_loading or self._clock() < self._moving_until

    def _complain(self, error: Exception) -> None:
        """Once, while it stays the same."""
        problem = str(error)
        if self._problem != problem:
            is_known = isinstance(error, Unavailable)
            logger.error("%s", problem, exc_info=None if is_known else error)
        self._problem = problem

    async def _look(self) -> None:
        if self._is_changed or self._is_missing():
            self._is_changed = False
            try:
                await self._deploy()
            except BaseException:
                self._is_changed = True
                raise
        states = dict(await self._cluster.states())
        # Somebody else has taken it away, or the cluster was made anew.
        self._asked = {name: model for name, model in self._asked.items() if name in states}
        for name, reason in self._unfit.items():
            states.setdefault(name, ("failed", reason))
        for slot in self.slots.values():
            name = name_of(slot.entry)
            slot.engine = self._engines.get(name)
            slot.state, slot.reason = states.get(name, ("cold", None))
        await self._retire(states)
        await self._tell()

    def _is_missing(self) -> bool:
        names = {name_of(slot.entry) for slot in self.slots.values()}
        return not names <= self._asked.keys() | self._unfit.keys()

    async def _deploy(self) -> None:
        models, unfit = [], {}
        for entry in [slot.entry for slot in self.slots.values()]:
            try:
                models.append(Deployed(name_of(entry), entry.spec(), entry.scale()))
            except CheckpointError as error:
                unfit[name_of(entry)] = UNFIT
                if name_of(entry) not in self._unfit:
                    logger.error("model %s: %s", entry.id, error.message)
        self._unfit = unfit
        changed = [model for model in models if self._asked.get(model.name) != model]
        engines = await self._cluster.deploy(changed)
        # Whoever has an engine keeps it, and with it what its router knows of prompts.
        self._engines = {**engines, **self._engines}
        self._asked |= {model.name: model for model in changed}
        if changed:
            self._expect_change()
        self._wake_wanted()

    def _wake_wanted(self) -> None:
        for slot in self.slots.values():
            engine = self._engines.get(name_of(slot.entry))
            if slot.wanted and engine is not None:
                slot.wanted = False
                wake = asyncio.create_task(engine.wake())
                self._wakes.add(wake)
                wake.add_done_callback(self._woken)

    def _woken(self, wake: asyncio.Task[None]) -> None:
        self._wakes.discard(wake)
        if not wake.cancelled() and (error := wake.exception()) is not None:
            logger.warning("a model was not woken: %s", error)

    async def _retire(self, deployed: Iterable[str]) -> None:
        """What no registry has had for a while goes, whoever deployed it."""
        wanted = {name_of(slot.entry) for slot in self.slots.values()}
        now = self._clock()
        self._surplus = {name: self._surplus.get(name, now) for name in set(deployed) - wanted}
        # What is retired stays deployed while its last requests run.
        self._retired &= self._surplus.keys()
        old = {name for name, since in self._surplus.items() if now - since >= RETIRE_AFTER_S}
        due = sorted(old - self._retired)
        if due:
            logger.info("no longer in the registry: %s", ", ".join(due))
            await self._cluster.retire(due)
        self._retired.update(due)
        for name in due:
            self._engines.pop(name, None)
            self._asked.pop(name, None)


def name_of(entry: Entry) -> str:
    """Of a model in the cluster: another checkpoint under the same id is another model, so that no
    prompt reaches an engine with other tokens."""
    identity = f"{entry.id}\n{entry.checkpoint}"
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", entry.id)
    return f"{readable}.{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
