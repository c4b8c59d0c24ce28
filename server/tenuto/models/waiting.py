"""Requests that wait for a model, in the order in which they get it."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenuto.models.slot import Lease


@dataclass(eq=False)
class Waiter:
    """`sequences` is how many the request will run in the engine at once."""

    granted: "asyncio.Future[Lease]"
    since: float
    sequences: int
    key: str = ""


@dataclass
class Queue:
    """Round robin over keys, so that no key can starve another; first come first for each."""

    _by_key: dict[str, deque[Waiter]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for waiters in self._by_key.values() for waiter in waiters)

    def add(self, waiter: Waiter) -> None:
        self._by_key.setdefault(waiter.key, deque()).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Of one that is no longer there, nothing."""
        waiters = self._by_key.get(waiter.key)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._by_key[waiter.key]

    def first(self) -> Waiter | None:
        return next(iter(self), None)

    def take(self) -> Waiter:
        """The first, whose key goes to the end."""
        key, waiters = next(iter(self._by_key.items()))
        del self._by_key[key]
        waiter = waiters.popleft()
        if waiters:
            self._by_key[key] = waiters
        return waiter

    def since(self) -> float | None:
        """When the longest waiting one came."""
        return min((waiter.since for waiter in self), default=None)
