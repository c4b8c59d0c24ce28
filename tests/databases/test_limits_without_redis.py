"""Limits while Redis is away, slow or full, and when it comes back."""

import asyncio
import logging
import time

import pytest

from tenuto.access import redis_line
from tenuto.access.shared_limits import SharedLimiter
from tests.access.test_limits import key
from tests.databases.limiters import SharedClock, Start, is_free, until, verdict, written
from tests.databases.services import PASSWORD, RedisServer

pytestmark = pytest.mark.databases


async def test_redis_that_has_lost_its_memory(
    redis_server: RedisServer, redis_url: str, told_clock: SharedClock
) -> None:
    """Usage knows more than this server does: of others' requests."""
    used = {"k": 90}
    limiter, asker = (
        SharedLimiter(redis_url, lambda: used, told_clock, told_clock),
        key(tokens_per_month=100, parallel_requests=2),
    )
    await limiter.start()
    admission = await limiter.admit(asker)
    used["k"] = 99
    with redis_server.stopped():
        await until(lambda: not limiter._line._is_here)
    told_clock.forward(0)
    await until(lambda: limiter._line._is_here)
    other = SharedLimiter(redis_url, dict, told_clock, told_clock)
    await other.start()
    assert await is_free(limiter, asker)
    # The first request kept its place, too.
    error = (await verdict(other, asker))[1]
    assert error[0] == "This key may have 2 requests at once."
    admission.charge(1)
    admission.release(0)
    await written([limiter])
    assert (await verdict(other, asker))[1][0] == "This key may use 100 tokens a month."
    await limiter.close()
    await other.close()


async def test_without_redis_each_counts_alone(
    redis_server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    servers, asker = [await start(), await start()], key(requests_per_minute=4)
    assert await is_free(servers[0], asker)
    with redis_server.stopped():
        for server in servers:
            # Its own requests of the last minute count.
            free = [await is_free(server, asker) for _ in range(6)]
            assert sum(free) == (3 if server is servers[0] else 4)
        assert caplog.text.count("Redis cannot be used, and this server counts alone: ") == 2
    await until(lambda: all(server._line._is_here for server in servers))
    assert caplog.text.count("Redis counts them again") == 2
    assert len(caplog.records) == 4
    assert PASSWORD not in caplog.text
    free = [await is_free(servers[number % 2], asker) for number in range(6)]
    assert free == [True] * 4 + [False] * 2


@pytest.mark.parametrize("fault", ["its scripts are gone", "its memory is full"])
async def test_a_redis_that_answers_with_errors(
    fault: str, redis_server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    limiter, asker = await start(), key(requests_per_minute=2)
    with redis_server.client() as client:
        if fault == "its memory is full":
            client.config_set("maxmemory", 1)
        else:
            client.script_flush()
        assert await is_free(limiter, asker)
        client.config_set("maxmemory", 0)
    assert caplog.text.count("this server counts alone") == 1
    await until(lambda: limiter._line._is_here)
    assert [await is_free(limiter, asker) for _ in range(3)] == [True, True, False]


async def test_nobody_waits_for_a_slow_redis(redis_server: RedisServer, start: Start) -> None:
    limiter, asker = await start(), key(requests_per_minute=100)
    with redis_server.frozen():
        began = time.monotonic()
        assert all(await asyncio.gather(*(is_free(limiter, asker) for _ in range(50))))
        assert 0.2 < time.monotonic() - began < 0.6
        began = time.monotonic()
        assert await is_free(limiter, asker)
        assert time.monotonic() - began < 0.05
    await until(lambda: limiter._line._is_here)


async def test_an_answer_that_came_while_the_loop_was_busy_counts(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = await start()
    asking = asyncio.create_task(limiter.admit(key(requests_per_minute=1)))
    for _ in range(3):
        await asyncio.sleep(0)
    time.sleep(2 * redis_line.ANSWER_S)  # noqa: ASYNC251 - it is what this is about
    await asking
    assert not caplog.records


async def test_places_given_back_meanwhile_are_free_at_once(
    redis_server: RedisServer, start: Start
) -> None:
    """Redis has kept its memory, and would keep the place for 30 s."""
    limiter, asker = await start(), key(parallel_requests=1)
    running = await limiter.admit(asker)
    with redis_server.frozen():
        await until(lambda: not limiter._line._is_here)
        running.release(0)
    await until(lambda: limiter._line._is_here)
    assert await is_free(limiter, asker)


async def test_what_waits_is_bounded(
    redis_server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "MAX_WAITING", 10)
    limiter, asker = await start(), key(requests_per_minute=100)
    with redis_server.frozen():
        asking = [asyncio.create_task(limiter.admit(asker)) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert len(limiter._line._calls) <= 10
        await asyncio.gather(*asking)
    await until(lambda: limiter._line._is_here)


async def test_a_server_that_starts_without_redis(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.stopped():
        limiter, asker = SharedLimiter(redis_server.url, dict), key(requests_per_minute=1)
        async with asyncio.timeout(3):
            await limiter.start()
        assert await is_free(limiter, asker)
        assert not await is_free(limiter, asker)
    await until(lambda: limiter._line._is_here)
    await limiter.close()
    assert "Connection refused" in caplog.text or "Connect call failed" in caplog.text
