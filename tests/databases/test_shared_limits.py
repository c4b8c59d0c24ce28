"""Limits in a real Redis: as in memory, and by several servers together."""

import asyncio
import random

import pytest

from tenuto.access import shared_limits
from tenuto.access.keys import Key
from tenuto.access.limit_scripts import LEASE_S
from tenuto.access.limits import Admission, Limiter
from tenuto.access.shared_limits import SharedLimiter
from tenuto.errors import ConfigError
from tests.access.test_limits import key
from tests.databases.limiters import SharedClock, Start, is_free, until, verdict, written
from tests.databases.services import PASSWORD, RedisServer

pytestmark = [pytest.mark.databases, pytest.mark.usefixtures("patient")]


async def forgotten(limiter: SharedLimiter) -> None:
    """As when its process is killed."""
    tasks = [task for task in (limiter._line._task, limiter._renewing) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await limiter._line._disconnect()
    limiter._line._task = None


def randomly_limited(chance: random.Random, name: str) -> Key:
    ranges = {
        "requests_per_minute": (1, 20),
        "tokens_per_minute": (100, 2000),
        "parallel_requests": (1, 5),
        "tokens_per_month": (3000, 20_000),
    }
    chosen = chance.sample(sorted(ranges), chance.randint(1, 4))
    return key(name, **{limit: chance.randint(*ranges[limit]) for limit in chosen})


@pytest.mark.parametrize("seed", range(4))
async def test_verdicts_are_those_of_memory(
    seed: int, start: Start, told_clock: SharedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers with Redis together, and one in memory: message by message."""
    # Requests of this test run for as long as they like.
    script: str = getattr(shared_limits, "ADMIT")  # noqa: B009 - the clock's, not the module's own
    lease = script.replace(f"now + {LEASE_S}", "now + 1000000000")
    monkeypatch.setattr(shared_limits, "ADMIT", lease)
    chance, clock = random.Random(seed), told_clock
    askers = [randomly_limited(chance, str(number)) for number in range(6)]
    alone, servers = Limiter(clock, clock), [await start(clock) for _ in range(2)]
    running: list[tuple[Admission, Admission]] = []
    num_refused = 0
    for _ in range(1500):
        if chance.random() < 0.3:
            clock.forward(chance.choice([1, 1, 2, 5, 30, 200]))
        if running and chance.random() < 0.4:
            pair = running.pop(chance.randrange(len(running)))
            tokens = chance.randint(0, 200)
            for admission in pair:
                admission.release(tokens)
            await written(servers)
        asker = chance.choice(askers)
        expected, said = await verdict(alone, asker)
        shared, said_by_redis = await verdict(chance.choice(servers), asker)
        assert said_by_redis == said
        if expected is None or shared is None:
            num_refused += 1
            continue
        charged = chance.randint(0, asker.limits.tokens_per_minute or 100)
        for admission in (expected, shared):
            admission.charge(charged)
        assert shared.headers() == expected.headers()
        await written(servers)
        running.append((expected, shared))
    assert 200 < num_refused < 1300


async def test_requests_of_two_servers_are_counted_together(start: Start) -> None:
    servers, asker = [await start(), await start()], key(requests_per_minute=10)
    free = [await is_free(servers[number % 2], asker) for number in range(14)]
    assert free == [True] * 10 + [False] * 4
    assert [server.refused["requests_per_minute"] for server in servers] == [2, 2]


async def test_a_minute_is_never_shorter(start: Start, redis_server: RedisServer) -> None:
    """By Redis's own clock, in whole seconds: at least 60 s and less than 61."""
    admission = await (await start()).admit(key(requests_per_minute=1))
    with redis_server.client() as client:
        seconds, micros = client.time()
        (bucket,) = client.hkeys("tenuto:k:requests")
        assert 0 <= int(bucket) - (seconds + micros / 1e6) + 0.5 < 1.5
        assert 60 <= client.ttl("tenuto:k:requests") <= 61
    assert 59 < float(admission.headers()["x-ratelimit-reset-requests"].rstrip("s")) <= 60


async def test_one_round_trip_on_the_way_in(start: Start, redis_server: RedisServer) -> None:
    limiter, asker = await start(), key(requests_per_minute=100, parallel_requests=50)
    with redis_server.client() as client:
        client.config_resetstat()
        admissions = [await limiter.admit(asker) for _ in range(20)]
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 20
        for admission in admissions:
            admission.release(0)


async def test_of_a_key_without_limits_redis_hears_nothing(
    start: Start, redis_server: RedisServer
) -> None:
    limiter = await start()
    admission = await limiter.admit(key())
    admission.charge(3)
    admission.release(4)
    await written([limiter])
    with redis_server.client() as client:
        assert not client.keys("tenuto:k*")


async def test_what_is_spent_is_there_after_a_clean_end(
    redis_url: str, redis_server: RedisServer
) -> None:
    limiter, asker = SharedLimiter(redis_url, dict), key(tokens_per_month=10**9)
    await limiter.start()
    admissions = [await limiter.admit(asker) for _ in range(3000)]
    for admission in admissions:
        admission.charge(2)
        admission.release(5)
    await limiter.close()
    with redis_server.client() as client:
        (name,) = client.keys("tenuto:k:month*")
        assert client.get(name) == "21000"


async def test_a_month_that_ends_while_redis_is_asked(
    start: Start, told_clock: SharedClock, redis_server: RedisServer
) -> None:
    """What was spent in it is not carried into the next one."""
    limiter, asker = await start(told_clock, k=90), key(tokens_per_month=100)
    with redis_server.frozen():
        asking = asyncio.create_task(limiter.admit(asker))
        await asyncio.sleep(0.05)
        told_clock.now += 17 * 86_400
    await asking
    assert limiter._spent["k"].in_month(told_clock.now) == 0


async def test_windows_keep_a_minute_alone(
    start: Start, told_clock: SharedClock, redis_server: RedisServer
) -> None:
    limiter = await start(told_clock)
    asker = key(requests_per_minute=1000, tokens_per_minute=10**6, parallel_requests=1)
    for _ in range(200):
        told_clock.forward(1)
        admission = await limiter.admit(asker)
        admission.charge(1)
        admission.release(1)
    with redis_server.client() as client:
        assert client.hlen("tenuto:k:requests") <= 61
        assert client.hlen("tenuto:k:tokens") <= 61
        assert all(client.ttl(name) > 0 for name in client.keys("tenuto:*"))
    own = limiter._spent["k"]
    assert len(own.requests._spent) <= 61
    assert len(own.tokens._spent) <= 2 * 61
    assert not limiter._places


async def test_places_of_a_killed_server_come_back(start: Start, told_clock: SharedClock) -> None:
    killed, other = await start(told_clock), await start(told_clock)
    asker = key(parallel_requests=1)
    assert await is_free(killed, asker)
    await forgotten(killed)
    told_clock.forward(LEASE_S - 1)
    assert not await is_free(other, asker)
    told_clock.forward(1)
    assert await is_free(other, asker)


async def test_a_long_request_keeps_its_place(
    start: Start, told_clock: SharedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "RENEW_EVERY_S", 0.001)
    busy, other = await start(told_clock), await start(told_clock)
    asker = key(parallel_requests=1)
    running = await busy.admit(asker)
    for _ in range(10):
        told_clock.forward(LEASE_S - 5)
        await asyncio.sleep(0.05)
        assert not await is_free(other, asker)
    running.release(0)
    await written([busy])
    assert await is_free(other, asker)


async def test_a_request_that_left_while_it_asked_keeps_no_place(
    start: Start, redis_server: RedisServer
) -> None:
    limiter, asker = await start(), key(parallel_requests=1)
    with redis_server.frozen():
        asking = asyncio.create_task(limiter.admit(asker))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: limiter._line._is_here)
    assert await is_free(limiter, asker)


async def test_an_empty_redis_counts_on_from_usage(start: Start, told_clock: SharedClock) -> None:
    """Two servers that start at once; and one that hears of it from the other alone."""
    asker = key(tokens_per_month=100)
    servers = [
        await start(told_clock, k=90),
        await start(told_clock, k=90),
        await start(told_clock),
    ]
    admissions = [await server.admit(asker) for server in servers]
    admissions[0].charge(4)
    admissions[1].release(5)
    await written(servers)
    assert await is_free(servers[2], asker)
    admissions[2].release(1)
    await written(servers)
    assert [await is_free(server, asker) for server in servers] == [False] * 3
    told_clock.forward(17 * 86_400)
    assert [await is_free(server, asker) for server in servers] == [True] * 3


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", "redis://:p%4/x@h:1/0"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^setting redis_url: should be redis://") as caught:
        SharedLimiter(url, dict)
    assert PASSWORD not in caught.value.message
