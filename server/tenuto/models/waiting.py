"""Requests that wait for a model, in the order in which they get it."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenuto.models.slot import Lease


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants a model. Of `priority` the lower number goes first, as in vLLM; `patience_s` is how
    long he would wait."""

    key: str = ""
    priority: int = 0
    patience_s: float = math.inf


ANYONE = Asker()


@dataclass(eq=False)
class Waiter:
    """`sequences` is how many the request will run in the engine at once."""

    granted: "asyncio.Future[Lease]"
    since: float
    sequences: int
    asker: Asker = ANYONE


@dataclass
class Queue:
    """By priority; within one round robin over keys, so that no key can starve another, and first
    come first for each."""

    _levels: dict[int, dict[str, deque[Waiter]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(waiters) for level in self._levels.values() for waiters in level.values())

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __iter__(self) -> Iterator[Waiter]:
        """Of each priority and key in turn; only the first one is the next."""
        for priority in sorted(self._levels):
            for waiters in self._levels[priority].values():
                yield from waiters

    def add(self, waiter: Waiter) -> None:
        level = self._levels.setdefault(waiter.asker.priority, {})
        level.setdefault(waiter.asker.key, deque()).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Of one that is no longer there, nothing."""
        level = self._levels.get(waiter.asker.priority, {})
        waiters = level.get(waiter.asker.key)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            self._drop_empty(waiter)

    def first(self) -> Waiter | None:
        return next(iter(self), None)

    def take(self) -> Waiter:
        """The first, whose key goes to the end."""
        level = self._levels[min(self._levels)]
        key, waiters = next(iter(level.items()))
        waiter = waiters.popleft()
        level[key] = level.pop(key)
        self._drop_empty(waiter)
        return waiter

    def since(self) -> float | None:
        """When the longest waiting one came."""
        return min((waiter.since for waiter in self), default=None)

    def _drop_empty(self, waiter: Waiter) -> None:
        key, priority = waiter.asker.key, waiter.asker.priority
        if not self._levels[priority][key]:
            del self._levels[priority][key]
        if not self._levels[priority]:
            del self._levels[priority]
