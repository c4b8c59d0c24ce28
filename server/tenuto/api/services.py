"""What the routes work with, built once in `app.py`."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from tenuto.access.guessing import Guesses
from tenuto.access.keys import Key, Keys
from tenuto.access.limits import Limiter
from tenuto.access.usage import Recorder
from tenuto.access.watching import KeyWatcher
from tenuto.api.exchange import Exchange
from tenuto.engine.types import Task
from tenuto.errors import BadRequest, ModelNotAllowed, UnknownModel
from tenuto.generation.policy import Policy
from tenuto.models.base import Models
from tenuto.models.registry import Entry, Registry, Target
from tenuto.models.slot import Lease
from tenuto.observe.history import History
from tenuto.observe.metrics import Metrics
from tenuto.wire.bounds import Bounds

DOES: dict[Task, str] = {
    "generate": "generates text: use /v1/chat/completions or /v1/completions.",
    "embed": "makes embeddings: use /v1/embeddings.",
}


def policy_of(entry: Entry) -> Policy:
    return Policy(
        system_prompt=entry.system_prompt,
        has_tool_parser=entry.tool_parser is not None,
        has_reasoning_parser=entry.reasoning_parser is not None,
    )


def may_use(key: Key | None, target: Target) -> bool:
    """A LoRA counts by its own id or its base's."""
    return key is None or key.allows(target.id) or key.allows(target.entry.id)


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
    pool: Models
    keys: Keys
    metrics: Metrics
    bounds: Bounds
    history: History = field(default_factory=History)
    guesses: Guesses = field(default_factory=Guesses)
    recorder: Recorder | None = None
    limiter: Limiter = field(default_factory=Limiter)
    eager: tuple[str, ...] = ()
    strict_params: bool = False
    share_prefix_cache: bool = True
    admin_remote: bool = False
    slow_s: float = 60
    state_dir: Path | None = None
    request_timeout_s: float = 60
    keep_alive_s: float = 15
    gate: Gate = field(default_factory=Gate)
    key_watcher: KeyWatcher | None = None

    def target(
        self, name: str, route: str, task: Task | None = None, *, key: Key | None = None
    ) -> Target:
        """Errors: `ModelNotAllowed` for one that `key` may not use; `UnknownModel`, with advice
        when only the checkpoint is missing; `BadRequest` for a model that does not do `task`."""
        target = self.registry.find(name)
        _judge_allowed(key, name, target)
        if target is None:
            raise UnknownModel(route, name)
        if not target.is_present:
            # A LoRA needs its base as well.
            missing = target.entry.id if target.entry.checkpoint is None else target.id
            raise UnknownModel(
                route,
                name,
                f" {missing} is registered, but its checkpoint is not on this host: run "
                f"`tenuto models pull {missing}` there and restart the server.",
            )
        if task is not None and task != target.entry.task:
            raise BadRequest(f"{name} {DOES[target.entry.task]}", param="model")
        return target

    def salt(self, key: Key | None, asked: str | None) -> str | None:
        """What parts the prefix cache: keys that do not share it never hit each other's."""
        return asked if self.share_prefix_cache or key is None else f"{key.id}:{asked or ''}"

    async def lease(
        self, exchange: Exchange, entry: Entry, sequences: int, priority: int = 0
    ) -> Lease:
        """Errors: `Unavailable`."""
        began, exchange.engine = time.monotonic(), entry.id
        try:
            return await self.pool.lease(entry, sequences, exchange.asker(priority))
        finally:
            exchange.queue_s = (exchange.queue_s or 0.0) + time.monotonic() - began

    async def admit(self, exchange: Exchange) -> None:
        """Errors: `RateLimited`. An open server limits nobody."""
        exchange.is_metered = True
        if exchange.key is not None:
            exchange.admission = await self.limiter.admit(exchange.key)

    def ready(self) -> bool:
        """The models of the start were loaded, and none of them has failed since; one that made
        room for another is loaded again when it is asked for."""
        slots = [self.pool.slots[name] for name in self.eager if name in self.pool.slots]
        failed = any(slot.state == "failed" for slot in slots)
        return not self.gate.draining and self.pool.started.is_set() and not failed


def _judge_allowed(key: Key | None, name: str, target: Target | None) -> None:
    """Of a name that it may not use a key does not learn whether it is known here."""
    if key is None or key.models is None:
        return
    if not (may_use(key, target) if target else key.allows(name)):
        raise ModelNotAllowed(key.models, name)
