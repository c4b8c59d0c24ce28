"""Limiters over a real Redis, as the tests of them use them."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tenuto.access.keys import Key
from tenuto.access.limits import Admission, Limiter
from tenuto.access.shared_limits import SharedLimiter
from tenuto.errors import RateLimited
from tests.access.test_limits import Clock, key

Start = Callable[..., Any]


class SharedClock(Clock):
    """Redis's too, where `told_clock` is used. It goes by whole seconds, as its windows do."""

    def __init__(self, redis: Any) -> None:
        super().__init__()
        self._redis = redis
        self.forward(0)

    def forward(self, seconds: float) -> None:
        self.now += seconds
        self._redis.set("clock", int(self.now))


async def verdict(limiter: Limiter, asker: Key) -> tuple[Admission | None, Any]:
    """With all that the client would see."""
    try:
        admission = await limiter.admit(asker)
    except RateLimited as error:
        return None, (error.message, error.headers)
    return admission, admission.headers()


async def is_free(limiter: Limiter, asker: Key) -> bool:
    """And takes a place."""
    return (await verdict(limiter, asker))[0] is not None


async def until(condition: Callable[[], object]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10, "it did not come to that"
        await asyncio.sleep(0.01)


async def written(servers: list[SharedLimiter]) -> None:
    """What one server tells Redis, the other is to find there."""
    unlimited_month = key("nobody", tokens_per_month=1)
    for server in servers:
        await server._told(unlimited_month, server._spent_by("nobody"), "no place")
