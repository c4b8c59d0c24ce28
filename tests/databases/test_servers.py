"""Two servers with one Postgres and one Redis: what their users meet, also when either is away."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest

from tenuto.access import redis_line
from tenuto.access.guessing import Guesses
from tenuto.access.keys import Keys
from tenuto.access.shared_limits import SharedLimiter
from tests.conftest import MODEL, Running, Setup, served
from tests.databases.services import Postgres, RedisServer

pytestmark = pytest.mark.databases
ADMIN = {"authorization": "Bearer sk-admin"}
REVOKED_S, ANSWER_S = 1.0, redis_line.ANSWER_S
Pair = tuple[Running, Running]


@pytest.fixture(scope="module")
def pair(
    postgres: Postgres, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """They start at once, over a database without a table."""
    url = postgres.fresh()
    with ExitStack() as stack:

        def start(name: str) -> Running:
            folder = tmp_path_factory.mktemp(name)
            setup = Setup(
                keys=Keys(admin=["sk-admin"]),
                state_dir=folder,
                database_url=url,
                services={
                    "limiter": SharedLimiter(redis_server.url, dict),
                    # These tests ask with ended keys until they are refused.
                    "guesses": Guesses(sleep=lambda _: asyncio.sleep(0)),
                },
            )
            return stack.enter_context(served(folder, setup))

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(start, ("first", "second"))
        first.engine(), second.engine()
        yield first, second


@pytest.fixture(autouse=True)
def _both_are_there(pair: Pair, redis_url: str, patient: None) -> Iterator[None]:
    """Each test leaves them as it found them, and Redis empty."""
    yield
    until(lambda: all(map(counts_in_redis, pair)))
    until(lambda: not any(map(is_kept_in_memory, pair)))


def counts_in_redis(server: Running) -> bool:
    limiter = server.services.limiter
    assert isinstance(limiter, SharedLimiter)
    return limiter._line._is_here


def is_kept_in_memory(server: Running) -> bool:
    """Its usage."""
    assert server.services.recorder is not None
    return server.services.recorder._failing


def until(condition: Callable[[], Any], limit_s: float = 10) -> float:
    """The seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come to that"
        time.sleep(0.005)
    return time.monotonic() - began


def create(server: Running, **wanted: Any) -> dict[str, Any]:
    answer = server.client.post("/admin/keys", json=wanted, headers=ADMIN)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def ask(server: Running, key: dict[str, Any], **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key['secret']}"}
    body = {"model": MODEL, "prompt": "Hi", **fields}
    return server.client.post("/v1/completions", json=body, headers=headers)


def knows(server: Running, key: dict[str, Any]) -> bool:
    headers = {"authorization": f"Bearer {key['secret']}"}
    return server.client.get("/v1/models", headers=headers).status_code == 200


def lacks(server: Running, key: dict[str, Any]) -> bool:
    return not knows(server, key)


def made_for_both(pair: Pair, **wanted: Any) -> dict[str, Any]:
    key = create(pair[0], **wanted)
    until(lambda: all(knows(server, key) for server in pair))
    return key


def statuses(pair: Pair, key: dict[str, Any], number: int) -> list[int]:
    """Of requests to one and the other in turn."""
    return [ask(pair[turn % 2], key).status_code for turn in range(number)]


def requests_of(server: Running, key: dict[str, Any]) -> int:
    asked = server.client.get("/admin/usage", params={"by": "key"}, headers=ADMIN)
    rows = {row["key"]: row for row in asked.json()["data"]}
    return int(rows.get(key["id"], {"requests": 0})["requests"])


def test_a_key_of_one_server_works_on_the_other(pair: Pair) -> None:
    key = create(pair[0])
    assert knows(pair[0], key)
    assert until(lambda: knows(pair[1], key)) < REVOKED_S


@pytest.mark.parametrize("ends", ["revoke", "rotate"])
def test_an_ended_key_ends_everywhere(pair: Pair, ends: str) -> None:
    for turn in range(4):
        one, other = (pair[turn % 2], pair[(turn + 1) % 2])
        key = made_for_both(pair)
        path = f"/admin/keys/{key['id']}"
        if ends == "revoke":
            one.client.delete(path, headers=ADMIN)
        else:
            one.client.post(f"{path}/rotate", headers=ADMIN)
        assert not knows(one, key)
        assert until(partial(lacks, other, key)) < REVOKED_S


def test_requests_a_minute_are_counted_together(pair: Pair) -> None:
    key = made_for_both(pair, requests_per_minute=10)
    assert statuses(pair, key, 14) == [200] * 10 + [429] * 4


def test_tokens_a_minute_are_counted_together(pair: Pair, redis_server: RedisServer) -> None:
    key = made_for_both(pair, tokens_per_minute=50)
    first = ask(pair[0], key, max_tokens=8)
    used = first.json()["usage"]["total_tokens"]
    with redis_server.client() as client:
        # They are sent beside the answer.
        name = f"tenuto:{key['id']}:tokens"
        until(lambda: sum(map(int, client.hvals(name))) == used)
    second = ask(pair[1], key)
    left = int(second.headers["x-ratelimit-remaining-tokens"])
    assert left == 50 - used - second.json()["usage"]["prompt_tokens"]


def test_requests_at_once_are_counted_together(pair: Pair) -> None:
    one, other = pair
    key = made_for_both(pair, parallel_requests=1)
    engine = one.engine()
    one.call(engine.started.clear), one.call(engine.go.clear)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(ask, one, key)
        one.wait(engine.started)
        refused = ask(other, key)
        one.call(engine.go.set)
        assert running.result(10).status_code == 200
    assert refused.status_code == 429
    assert "may have 1 requests at once" in refused.text
    # The place is given back beside the answer.
    until(lambda: ask(other, key).status_code == 200, limit_s=1)


def test_a_limit_is_exact_under_load(pair: Pair) -> None:
    """From many threads to both at once."""
    key = made_for_both(pair, requests_per_minute=30)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda turn: ask(pair[turn % 2], key), range(80)))
    assert sorted(answer.status_code for answer in answers) == [200] * 30 + [429] * 50


def test_usage_of_both(pair: Pair) -> None:
    key = made_for_both(pair)
    assert statuses(pair, key, 7) == [200] * 7
    until(lambda: [requests_of(server, key) for server in pair] == [7, 7])


def test_a_month_is_counted_together_by_usage_when_redis_has_forgotten(
    pair: Pair, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = made_for_both(pair, tokens_per_month=30)
    used = ask(pair[0], key, max_tokens=8).json()["usage"]["total_tokens"]
    with redis_server.client() as client:
        (name,) = client.keys(f"tenuto:{key['id']}:month*")
        until(lambda: int(client.get(name) or 0) == used)
        client.flushall()
        ask(pair[0], key, max_tokens=1)
        until(lambda: int(client.get(name) or 0) > used)


def test_without_postgres_known_keys_work_and_usage_is_kept(
    pair: Pair, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = pair
    key = made_for_both(pair, requests_per_minute=100)
    with postgres.stopped():
        assert statuses(pair, key, 6) == [200] * 6
        refused = one.client.post("/admin/keys", json={}, headers=ADMIN)
        assert refused.status_code == 503
        assert "state database cannot be used" in refused.text
        assert one.client.get("/admin/usage", headers=ADMIN).status_code == 503
        until(lambda: caplog.text.count("keys are not read again") == 2)
        until(lambda: caplog.text.count("kept in memory") == 2)
    until(lambda: requests_of(other, key) == 6)
    one.client.delete(f"/admin/keys/{key['id']}", headers=ADMIN)
    assert until(partial(lacks, other, key)) < REVOKED_S
    assert caplog.text.count("keys are not read again") == 2
    assert caplog.text.count("is written again; 0 requests were dropped") == 2


def test_without_redis_each_server_counts_alone(
    pair: Pair, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    key = made_for_both(pair, requests_per_minute=3)
    with redis_server.stopped():
        assert statuses(pair, key, 8) == [200] * 6 + [429] * 2
    until(lambda: all(map(counts_in_redis, pair)))
    assert caplog.text.count("this server counts alone") == 2
    assert statuses(pair, key, 5) == [200] * 3 + [429] * 2


def test_a_redis_that_hangs_holds_nobody_up(
    pair: Pair, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "ANSWER_S", ANSWER_S)
    key = made_for_both(pair, requests_per_minute=1000)
    with redis_server.frozen(), ThreadPoolExecutor(8) as threads:
        began = time.monotonic()
        answers = list(threads.map(lambda turn: ask(pair[turn % 2], key), range(40)))
        assert time.monotonic() - began < 2
    assert {answer.status_code for answer in answers} == {200}


def test_both_away_under_load(pair: Pair, postgres: Postgres, redis_server: RedisServer) -> None:
    """Whatever comes and goes meanwhile, no request of a known key fails, and all are recorded."""
    key = made_for_both(pair, requests_per_minute=10**6, parallel_requests=100)
    ended, found = threading.Event(), []

    def client(turn: int) -> None:
        while not ended.is_set():
            found.append(ask(pair[turn % 2], key).status_code)

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(client, turn) for turn in range(4)]
        with postgres.stopped():
            time.sleep(0.3)
        with redis_server.stopped():
            time.sleep(0.3)
        with redis_server.stopped(), postgres.stopped():
            time.sleep(0.3)
        ended.set()
        for work in clients:
            work.result(10)
    assert set(found) == {200}
    until(lambda: requests_of(pair[0], key) == len(found))
