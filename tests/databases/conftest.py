"""Limiters of several servers, over one Redis."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tenuto.access import redis_line, shared_limits
from tenuto.access.limit_scripts import NOW
from tenuto.access.shared_limits import SharedLimiter
from tests.access.test_limits import Clock
from tests.databases.limiters import SharedClock, Start
from tests.databases.services import RedisServer

CLOCK = "local now = tonumber(redis.call('GET', 'clock'))\n"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do to this machine is no reason to do without Redis."""
    monkeypatch.setattr(redis_line, "ANSWER_S", 10)


@pytest.fixture
def told_clock(
    redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> SharedClock:
    for name in ("ADMIT", "SPEND", "RENEW"):
        script = getattr(shared_limits, name)
        assert NOW in script
        monkeypatch.setattr(shared_limits, name, script.replace(NOW, CLOCK))
    return SharedClock(redis_server.client())


@pytest.fixture
async def start(redis_url: str) -> AsyncIterator[Start]:
    """Servers' limiters, that end with the test."""
    async with AsyncExitStack() as stack:

        async def started(clock: Clock | None = None, **written: int) -> SharedLimiter:
            clocks = (clock, clock) if clock is not None else ()
            limiter = SharedLimiter(redis_url, lambda: written, *clocks)
            limiter.spent_this_month(written)
            await limiter.start()
            stack.push_async_callback(limiter.close)
            return limiter

        yield started
