"""Who guesses keys is slowed down, by address; a valid key is never delayed."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tenuto.errors import RateLimited

FREE_FAILURES = 10
FORGET_S = 60.0
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0
# What is remembered and what waits is bounded: an attacker chooses how much of either there is.
MAX_ADDRESSES = 10_000
MAX_WAITING = 100


@dataclass
class Guesses:
    """`sleep` and `clock` are in seconds. `refused` counts those that were not even delayed."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    refused: int = 0
    _failures: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)
    _num_waiting: int = 0

    async def failed(self, address: str) -> None:
        """Returns when the refusal may be sent: at once for the first ones of an address within a
        minute, then after twice the time for each. Errors: `RateLimited` when too many wait."""
        delay_s = self._delay_s(address)
        if delay_s == 0:
            return
        if self._num_waiting >= MAX_WAITING:
            self.refused += 1
            raise RateLimited("Too many wrong API keys.", retry_after_s=int(FORGET_S))
        self._num_waiting += 1
        try:
            await self.sleep(delay_s)
        finally:
            self._num_waiting -= 1

    def _delay_s(self, address: str) -> float:
        now = self.clock()
        count, last = self._failures.pop(address, (0, now))
        count = count + 1 if now - last < FORGET_S else 1
        self._failures[address] = (count, now)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        excess = count - FREE_FAILURES
        return min(FIRST_DELAY_S * 2 ** min(excess - 1, 20), MAX_DELAY_S) if excess > 0 else 0.0
