"""What dies, and what its clients meet: streams in flight end with the error event, all that has
not begun is served, and what was lost comes back by itself."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.benchmarks.hosts import WORKERS, Hosts
from tests.cluster.conftest import NUM_CPUS, front, replica_of, wait_unfinished
from tests.live.conftest import LiveServer, write_registry
from tests.sse import DONE, events

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
BACK_S = 60.0
NUM_STREAMS = 12


def row(name: str, **replicas: int) -> dict[str, Any]:
    return {"id": name, "replicas": {"min": 2, "max": 2, **replicas}}


def stream(server: LiveServer, model: str, max_tokens: int) -> list[Any]:
    """All events of one stream of its own client's."""
    body = {"model": model, "prompt": "Hi", "max_tokens": max_tokens, "stream": True}
    with httpx.Client(base_url=server.url, timeout=90) as client:
        return events(client.post("/v1/completions", json=body).text)


@contextmanager
def streams(server: LiveServer, model: str, max_tokens: int) -> Iterator[list[Future[list[Any]]]]:
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        running = [threads.submit(stream, server, model, max_tokens) for _ in range(NUM_STREAMS)]
        wait_unfinished(server, model, NUM_STREAMS)
        yield running


def replicas(server: LiveServer, model: str) -> set[int]:
    return {replica_of(server, model, seed=seed) for seed in range(20)}


def is_cut(found: list[Any]) -> bool:
    """Ended by the error event; else it is whole."""
    if found[-1] == DONE:
        return False
    assert found[-1]["error"]["type"] == "ServiceUnavailableError", found[-1]
    assert not any(choice["finish_reason"] for event in found[:-1] for choice in event["choices"])
    return True


def wait_back(server: LiveServer, model: str, number: int, *without: int) -> float:
    """Seconds until so many others serve; every request meanwhile is answered."""
    began = time.monotonic()
    while len(replicas(server, model) - set(without)) < number:
        assert time.monotonic() - began < BACK_S
    return time.monotonic() - began


def test_a_replica_is_killed(hosts: Hosts, tmp_path: Path) -> None:
    with front(hosts, tmp_path, [row("fragile")], interval_s=0.02) as server:
        victim, other = sorted(replicas(server, "fragile"))
        with streams(server, "fragile", max_tokens=400) as running:
            os.kill(victim, signal.SIGKILL)
            # Not begun when it died: served, by the other.
            assert replica_of(server, "fragile") == other
            cut = [is_cut(future.result()) for future in running]
        assert 0 < sum(cut) < NUM_STREAMS
        wait_back(server, "fragile", 2, victim)


def test_unstreamed_requests_of_a_killed_replica_are_answered(hosts: Hosts, tmp_path: Path) -> None:
    with front(hosts, tmp_path, [row("quiet")], interval_s=0.02) as server:
        victim, _ = sorted(replicas(server, "quiet"))
        with ThreadPoolExecutor(NUM_STREAMS) as threads:
            asked = [
                threads.submit(server.complete, "Hi", model="quiet", max_tokens=150)
                for _ in range(NUM_STREAMS)
            ]
            wait_unfinished(server, "quiet", NUM_STREAMS)
            os.kill(victim, signal.SIGKILL)
            assert {future.result().status_code for future in asked} == {200}


def test_a_front_end_is_killed(hosts: Hosts, tmp_path: Path) -> None:
    """The other one serves on, and the replicas' places are free again."""
    models = [row("shared")]
    with (
        front(hosts, tmp_path / "one", models) as one,
        front(hosts, tmp_path / "two", models, ip=WORKERS[1]) as two,
    ):
        both = replicas(two, "shared")
        with streams(one, "shared", max_tokens=3000) as running, ThreadPoolExecutor(1) as thread:
            running.append(
                thread.submit(one.complete, "Hi", model="shared", max_tokens=3000)  # type: ignore[arg-type]
            )
            wait_unfinished(two, "shared", NUM_STREAMS + 1)
            one.process.kill()
            for future in running:
                assert isinstance(future.exception(), httpx.TransportError)
        wait_unfinished(two, "shared", 0)
        assert replicas(two, "shared") == both


def test_the_registry_changes_while_requests_run(hosts: Hosts, tmp_path: Path) -> None:
    """Another context is another engine: replicas are replaced, and no request fails."""
    with front(hosts, tmp_path, [row("rolling")], interval_s=0.01) as server:
        before = replicas(server, "rolling")
        with streams(server, "rolling", max_tokens=600) as running:
            changed = {**row("rolling"), "max_model_len": 4096}
            write_registry(tmp_path / "registry.yaml", [changed])
            began = time.monotonic()
            while replicas(server, "rolling") & before:
                assert time.monotonic() - began < BACK_S
            assert not any(is_cut(future.result()) for future in running)
        assert server.complete("Hi", model="rolling", max_tokens=5000).status_code == 400


def test_a_worker_is_lost(hosts: Hosts, tmp_path: Path) -> None:
    lost = WORKERS[1]
    with front(hosts, tmp_path, [row("spread", min=4, max=4)]) as server:
        before = replicas(server, "spread")
        with streams(server, "spread", max_tokens=500) as running:
            hosts.kill(lost)
            # Nobody knows yet who is gone; what had not begun is served all the same.
            assert server.complete("Hi", model="spread", max_tokens=1).status_code == 200
            cut = [is_cut(future.result()) for future in running]
        assert 0 < sum(cut) < NUM_STREAMS
        # Their places are found on the host that is left.
        wait_back(server, "spread", 4)
        hosts.start(lost, NUM_CPUS)
        hosts.wait_up(lost)
        assert len(replicas(server, "spread") & before) >= 1
