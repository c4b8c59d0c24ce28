"""The models of a cluster: what runs where is its scheduler's to decide, by the registry alone."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from tenuto.engine.base import Backend, Cluster, Engine, Prompts
from tenuto.engine.types import Deployed
from tenuto.errors import BadRequest, EngineStartError, Unavailable
from tenuto.models.registry import Entry, Registry
from tenuto.models.slot import Lease, Slot
from tenuto.models.waiting import ANYONE, Asker

logger = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0
# Other front ends may read a changed registry so much later, and use until then what is no longer
# in it.
RETIRE_AFTER_S = 30.0


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
        self._surplus: dict[str, float] = {}
        self._looked = asyncio.Condition()
        self._changed = asyncio.Event()
        self._changed.set()
        self._owner: asyncio.Task[None] | None = None
        self._problem: str | None = None

    async def load(self, ids: Sequence[str]) -> None:
        self._begin()
        async with self._looked:
            await self._looked.wait_for(lambda: self._loaded(ids))
        for model_id in ids:
            await self.slots[model_id].made_prompts(self._backend)
        self.started.set()

    def want(self, model_id: str) -> None:
        """Has its first replica started."""
        self._begin()
        engine = self._engines.get(name_of(self.slots[model_id].entry))
        if engine is not None:
            slot = self.slots[model_id]
            slot.work = asyncio.create_task(engine.wake())
            slot.work.add_done_callback(_noted)

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
        self._changed.set()

    async def prompts(self, entry: Entry) -> Prompts:
        slot = self._slot(entry)
        return await slot.usable(slot.made_prompts(self._backend))

    async def lease(self, entry: Entry, sequences: int = 1, asker: Asker = ANYONE) -> Lease:
        """At once, when it is deployed: requests wait where they are shared out."""
        slot, name = self._slot(entry), name_of(entry)
        if name not in self._engines:
            await self._deployed(name, min(asker.patience_s, self._max_wait_s))
        return Lease(slot, self._engines[name], sequences, self._released)

    def is_ready(self, entry: Entry) -> bool:
        slot = self.slots.get(entry.id)
        return slot is not None and slot.state == "ready"

    async def close(self, drain_s: float) -> None:
        if self._owner is not None:
            self._owner.cancel()
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

    async def _deployed(self, name: str, wait_s: float) -> None:
        self._begin()
        try:
            async with asyncio.timeout(wait_s), self._looked:
                await self._looked.wait_for(lambda: name in self._engines)
        except TimeoutError:
            raise Unavailable("The cluster does not answer. Please retry.") from None

    def _loaded(self, ids: Sequence[str]) -> bool:
        """Errors: `EngineStartError`."""
        slots = [self.slots[model_id] for model_id in ids if model_id in self.slots]
        for slot in slots:
            if slot.state == "failed":
                raise EngineStartError(f"model {slot.entry.id}: {slot.reason}")
        return not self._changed.is_set() and all(slot.state == "ready" for slot in slots)

    def _begin(self) -> None:
        if self._owner is None:
            self._owner = asyncio.create_task(self._own())

    async def _own(self) -> None:
        """Deploys what has changed, and looks what became of it."""
        while True:
            try:
                await self._look()
                self._problem = None
            except Unavailable as error:
                if self._problem != error.message:
                    logger.error("%s", error.message)
                self._problem = error.message
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                continue
            if self._problem is not None:
                await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        if self._changed.is_set():
            self._changed.clear()
            try:
                await self._deploy()
            except BaseException:
                self._changed.set()
                raise
        states = await self._cluster.states()
        for slot in self.slots.values():
            name = name_of(slot.entry)
            slot.engine = self._engines.get(name)
            slot.state, slot.reason = states.get(name, ("cold", None))
        await self._retire(states)
        async with self._looked:
            self._looked.notify_all()

    async def _deploy(self) -> None:
        entries = [slot.entry for slot in self.slots.values()]
        models = [Deployed(name_of(entry), entry.spec(), entry.scale()) for entry in entries]
        self._engines |= await self._cluster.deploy(models)

    async def _retire(self, deployed: Iterable[str]) -> None:
        """What no registry has had for a while goes, whoever deployed it."""
        wanted = {name_of(slot.entry) for slot in self.slots.values()}
        now = self._clock()
        self._surplus = {name: self._surplus.get(name, now) for name in set(deployed) - wanted}
        due = [name for name, since in self._surplus.items() if now - since >= RETIRE_AFTER_S]
        if due:
            logger.info("no longer in the registry: %s", ", ".join(due))
            await self._cluster.retire(due)
        for name in due:
            self._engines.pop(name, None)


def name_of(entry: Entry) -> str:
    """Of a model in the cluster: another checkpoint under the same id is another model, so that no
    prompt reaches an engine with other tokens."""
    identity = f"{entry.id}\n{entry.checkpoint}"
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", entry.id)
    return f"{readable}.{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _noted(woken: asyncio.Task[None]) -> None:
    if not woken.cancelled() and (error := woken.exception()) is not None:
        logger.warning("a model was not woken: %s", error)
