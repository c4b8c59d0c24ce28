"""More models than memory holds: real engines come and go, and no request is lost."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from scripts.benchmarks.processes import descendants
from tests.live.conftest import LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS, HELLO
from tests.live.test_cancellation import wait_until
from tests.models.pools import only
from tests.models.simulation import Request, Simulation

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]
MODELS = ["one", "two", "owner/three"]
# A tiny model is taken to need 2.5 GiB of work space, so that this holds one of them.
GPU = "3GiB"
TURN_S = 2.0
NUM_REQUESTS, NUM_CLIENTS, NUM_LEAVING, MAX_SWITCHES = 200, 20, 20, 40
LEAVES_S = 0.3
# One that the policy's simulation does not know may come with every few of its own.
MOST_OF_SIMULATED = 1.2
# What the allocator and caches keep after the first load and unload of each model.
MAX_GROWTH_BYTES = 64 << 20
ADMIN = {"authorization": "Bearer sk-owner"}


@contextmanager
def crowd(directory: Path, models: list[str]) -> Iterator[LiveServer]:
    rows = [{"id": name, "load": "on_demand"} for name in models]
    registry = write_registry(directory / "registry.yaml", rows)
    environment = {
        "TENUTO_GPUS": GPU,
        "TENUTO_TURN_S": str(TURN_S),
        "TENUTO_ADMIN_KEYS": "sk-owner",
    }
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        server.client.headers.update(ADMIN)
        yield server


@pytest.fixture(scope="module", params=[2, 3], ids=["two models", "three models"])
def crowded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    with crowd(tmp_path_factory.mktemp("crowded"), MODELS[: request.param]) as server:
        for model in MODELS[: request.param]:
            assert ask(server, model).status_code == 200
        unload_all(server)
        yield server


def rows_of(server: LiveServer) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.client.get("/admin/models").json()["data"]
    return rows


def models_of(server: LiveServer) -> list[str]:
    return [row["id"] for row in rows_of(server)]


def ask(server: LiveServer, model: str, **fields: Any) -> httpx.Response:
    return server.chat(HELLO, model=model, temperature=0, **fields)


def unload_all(server: LiveServer) -> None:
    for model in models_of(server):
        server.client.post(f"/admin/models/{model}/unload").raise_for_status()
    wait_until(lambda: {row["state"] for row in rows_of(server)} == {"cold"})
    assert server.engine_pids() == []


def memory_bytes(server: LiveServer) -> int:
    """Of the server and all processes below it; shared pages count once."""
    pids = [server.process.pid, *descendants(server.process.pid)]
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0]) << 10 for text in texts)


def loads(server: LiveServer) -> int:
    return len(re.findall(r"engine started", server.log.read_text()))


@dataclass
class Crowd:
    """Clients that ask for models in random order; some leave before they are answered."""

    server: LiveServer
    answered: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        chance, names = random.Random(5), models_of(self.server)
        self.asked = [chance.choice(names) for _ in range(NUM_REQUESTS)]
        self.leaving = set(chance.sample(range(NUM_REQUESTS), NUM_LEAVING))

    def run(self) -> None:
        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            list(clients.map(self._send, range(NUM_REQUESTS)))

    def simulated(self, load_s: float, unload_s: float, run_s: float) -> Simulation:
        requests = [
            Request(model, run_s, LEAVES_S if number in self.leaving else None)
            for number, model in enumerate(self.asked)
        ]
        names = models_of(self.server)
        return Simulation(names, only(1), TURN_S, load_s, unload_s).work(requests, NUM_CLIENTS)

    def _send(self, number: int) -> None:
        model = self.asked[number]
        if number in self.leaving:
            with pytest.raises(httpx.TimeoutException):
                self.server.client.post(
                    "/v1/completions",
                    json={"model": model, "prompt": "The", "max_tokens": 8000, "ignore_eos": True},
                    timeout=LEAVES_S,
                )
            return
        answer = ask(self.server, model)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["choices"][0]["message"]["content"] == ANSWERS[HELLO]
        with self._lock:
            self.answered.append((model, body["model"]))


def test_every_request_is_answered_by_the_model_that_it_names(crowded: LiveServer) -> None:
    crowd, at_first, before = Crowd(crowded), loads(crowded), memory_bytes(crowded)
    crowd.run()
    switches = loads(crowded) - at_first
    simulated = crowd.simulated(*durations(crowded)).num_loads
    assert len(crowd.answered) == NUM_REQUESTS - NUM_LEAVING
    assert all(asked_for == by for asked_for, by in crowd.answered)
    unload_all(crowded)
    growth_bytes = memory_bytes(crowded) - before
    print(
        f"\n{len(models_of(crowded))} models: {switches} loads, {simulated} in the simulation; "
        f"memory {before >> 20} MiB, afterwards {growth_bytes / 2**20:+.0f} MiB"
    )
    assert len(models_of(crowded)) <= switches <= MAX_SWITCHES
    assert switches <= MOST_OF_SIMULATED * simulated
    assert growth_bytes < MAX_GROWTH_BYTES


def durations(server: LiveServer) -> tuple[float, float, float]:
    """Seconds of a load, of an unload and of a request on a loaded model, on this machine."""
    rows = rows_of(server)
    load_s = median(row["load_s"] for row in rows)
    began = time.monotonic()
    unload_all(server)
    unload_s = time.monotonic() - began
    assert ask(server, rows[0]["id"]).status_code == 200
    began = time.monotonic()
    assert ask(server, rows[0]["id"]).status_code == 200
    return load_s, unload_s, time.monotonic() - began


def test_one_engine_at_a_time(crowded: LiveServer) -> None:
    for model in models_of(crowded):
        assert ask(crowded, model).status_code == 200
        wait_until(lambda: len(crowded.engine_pids()) == 1)


def test_a_lost_engine_is_started_again(crowded: LiveServer) -> None:
    model = models_of(crowded)[0]
    assert ask(crowded, model).status_code == 200
    (pid,) = crowded.engine_pids()
    os.kill(pid, signal.SIGKILL)
    assert ask(crowded, model).status_code == 200
