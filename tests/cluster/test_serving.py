"""What a client meets when replicas answer: the same as from one machine."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from scripts.benchmarks.hosts import Hosts
from tests.cluster.conftest import front, replica_of, wait_unfinished
from tests.live.conftest import LiveServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
INTERVAL_S = 0.02
MODELS: list[dict[str, Any]] = [
    {"id": "two", "replicas": {"min": 2, "max": 2}},
    {"id": "idle", "load": "on_demand", "idle_ttl": 3, "replicas": {"max": 1}},
    {"id": "small", "replicas": {"max": 1, "target_ongoing_requests": 2}},
    {"id": "growing", "replicas": {"min": 1, "max": 2, "target_ongoing_requests": 1}},
]


@pytest.fixture(scope="module")
def served(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("front")
    with front(
        hosts, directory, MODELS, interval_s=INTERVAL_S, max_waiting="4", max_wait_s="30"
    ) as server:
        yield server


def test_a_stream_comes_token_by_token(served: LiveServer) -> None:
    body = {"model": "two", "prompt": "Hi", "max_tokens": 20, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as answer:
        came = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
    assert len(came) >= 20
    assert came[-1] - came[0] > 15 * INTERVAL_S


def test_both_replicas_serve(served: LiveServer) -> None:
    assert len({replica_of(served, "two", seed=seed) for seed in range(30)}) == 2


def test_an_error_of_an_engine_has_its_type_and_its_param(served: LiveServer) -> None:
    answer = served.complete("Hi", model="two", max_tokens=0)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")


def test_a_client_that_leaves_ends_its_request_on_the_replica(served: LiveServer) -> None:
    body = {"model": "small", "prompt": "Hi", "max_tokens": 5000, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as answer:
        # Who forgets the iterator has left.
        lines = answer.iter_lines()
        next(lines)
        wait_unfinished(served, "small", 1, within_s=5)
    # The replica says it once a second.
    assert wait_unfinished(served, "small", 0, within_s=2.1) < 2.1


def test_more_than_a_replica_takes_waits_and_more_than_may_wait_is_refused(
    served: LiveServer,
) -> None:
    def ask(_: int) -> httpx.Response:
        return served.complete("Hi", model="small", max_tokens=50)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 16
    assert {answer.status_code for answer in refused} == {503}
    assert all("retry-after" in answer.headers for answer in refused)


def test_a_request_wakes_a_model_without_replicas(served: LiveServer) -> None:
    def state() -> str:
        rows = served.client.get("/v1/model/info").json()["data"]
        states = {row["model_name"]: row["model_info"]["state"] for row in rows}
        return str(states["idle"])

    assert state() == "cold"
    assert served.complete("Hi", model="idle", max_tokens=1).status_code == 200
    began = time.monotonic()
    while state() != "cold":
        assert time.monotonic() - began < 60
        time.sleep(0.2)


def test_more_requests_than_wanted_for_one_replica_start_another(served: LiveServer) -> None:
    before = replica_of(served, "growing")
    with ThreadPoolExecutor(3) as threads:
        long = [
            threads.submit(served.complete, "Hi", model="growing", max_tokens=1500)
            for _ in range(3)
        ]
        began = time.monotonic()
        while replica_of(served, "growing", seed=1) == before:
            assert time.monotonic() - began < 60
        assert all(answer.result().status_code == 200 for answer in long)
