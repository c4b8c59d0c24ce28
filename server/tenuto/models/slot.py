"""One registered model as the pool sees it, and the lease of a request on its engine."""

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tenuto.engine.base import Backend, Engine, Prompts
from tenuto.engine.types import Canary, ModelFacts
from tenuto.errors import ApiError, CheckpointError, EngineLost, EngineStartError, NotLoaded
from tenuto.models.decisions import Snapshot, State
from tenuto.models.registry import Entry
from tenuto.models.room import Place
from tenuto.models.waiting import Queue

logger = logging.getLogger(__name__)
# What a load is taken to last before one was measured.
UNKNOWN_LOAD_S = 60.0


@dataclass
class Done:
    """What was done to a model since the process began: how often and for how many seconds in all,
    by what it was (load, wake, sleep, unload)."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    evictions: int = 0
    failures: int = 0

    def add(self, what: str, seconds: float) -> float:
        self.counts[what] += 1
        self.seconds[what] += seconds
        return seconds


@dataclass
class Slot:
    """Only the pool's owner writes it. `engine` is set while there is a process, also while it
    sleeps; `work` is what changes the state next, begun at `began_at`. `load_s` and `wake_s` are
    what these took the last time; `canary` is what the engine said when it was new. `is_stale`: its
    entry has changed since the engine was started."""

    entry: Entry
    state: State = "cold"
    reason: str | None = None
    engine: Engine | None = None
    canary: Canary | None = None
    place: Place | None = None
    leases: int = 0
    sequences: int = 0
    held: bool = False
    is_lost: bool = False
    is_removed: bool = False
    is_stale: bool = False
    wanted: bool = False
    dismissed: Literal["asleep", "cold"] | None = None
    used_at: float = 0.0
    began_at: float = 0.0
    ready_at: float = 0.0
    retry_at: float = 0.0
    failed_starts: int = 0
    failed_wakes: int = 0
    load_s: float | None = None
    wake_s: float | None = None
    done: Done = field(default_factory=Done)
    queue: Queue = field(default_factory=Queue)
    prompts: asyncio.Task[Prompts] | None = None
    work: asyncio.Task[Any] | None = None

    def facts(self) -> ModelFacts | None:
        """Known once the prompts were made."""
        made = self.prompts is not None and self.prompts.done() and not self.prompts.cancelled()
        if self.prompts is None or not made or self.prompts.exception() is not None:
            return None
        return self.prompts.result().facts

    async def made_prompts(self, backend: Backend) -> Prompts:
        """Made on first use, once, without the model's weights; again after a failure."""
        if self.prompts is None:
            self.prompts = asyncio.create_task(backend.prompts(self.entry.spec()))
            self.prompts.add_done_callback(self._unless_failed)
        return await asyncio.shield(self.prompts)

    async def usable(self, prompts: Awaitable[Prompts]) -> Prompts:
        """Errors: `Unavailable` in words for clients."""
        try:
            return await prompts
        except (EngineStartError, CheckpointError) as error:
            logger.error("%s", error.message)
            what = f"{self.entry.id} cannot be used: its tokenizer did not load."
            raise NotLoaded(what) from None

    def _unless_failed(self, made: asyncio.Task[Prompts]) -> None:
        if (made.cancelled() or made.exception() is not None) and self.prompts is made:
            self.prompts = None

    def has_process(self) -> bool:
        """An engine, or one that is being started."""
        return self.engine is not None or self.state == "loading"

    def is_open(self) -> bool:
        """Ready, and not about to go."""
        return self.state == "ready" and not (self.held or self.is_lost or self.is_stale)

    def granted(self, sequences: int) -> Engine | None:
        """The engine, when it takes so many more; a request that alone is too large runs alone."""
        if self.engine is None or not self.is_open():
            return None
        has_room = self.sequences + sequences <= self.engine.capacity
        return self.engine if has_room or self.sequences == 0 else None

    def remaining_s(self, now: float) -> float:
        """Until the model can be ready, as far as was measured; nothing of those in its way."""
        match self.state:
            case "ready":
                return 0.0
            case "loading" | "waking":
                known = self.wake_s if self.state == "waking" else self.load_s
                return max(0.0, (known or UNKNOWN_LOAD_S) - (now - self.began_at))
            case "asleep" | "suspending":
                return self.wake_s or UNKNOWN_LOAD_S
        return self.load_s or UNKNOWN_LOAD_S

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
            can_sleep=self.engine is not None and self.engine.can_sleep,
            dismissed="cold" if self.is_stale else self.dismissed,
        )

    def refuse(self, error: ApiError) -> None:
        """Ends every wait."""
        for waiter in list(self.queue):
            self.queue.remove(waiter)
            waiter.granted.set_exception(error)

    def gone(self) -> NotLoaded:
        return NotLoaded(f"{self.entry.id} has failed and is not served: {self.reason}.")

    def give_up(self, reason: str, retry_at: float = math.inf) -> None:
        self.state, self.reason, self.retry_at, self.wanted = "failed", reason, retry_at, False
        self.refuse(self.gone())


class Lease:
    """The right to use an engine; release it when the request has left the engine."""

    def __init__(
        self, slot: Slot, engine: Engine, sequences: int, released: Callable[[Slot], None]
    ) -> None:
        self.engine = engine
        self._slot, self._sequences, self._released = slot, sequences, released
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
        self._released(self._slot)
