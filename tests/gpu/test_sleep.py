"""Seconds and bytes of sleep, wake and swap, with the largest checkpoint that can be made here.

`scripts/gpu_check`. Without a GPU it is a dry run: nothing sleeps, and models are unloaded instead.
"""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gpu.conftest import DEVICES
from tests.live.conftest import LiveServer, launched, write_registry

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1500)]
HAS_GPU = bool(DEVICES)
# Their levels: one keeps its weights in the host's memory, the other reads its files again.
ONE, TWO = "one", "two"
LOAD_S = 600
GIB = 1 << 30


@dataclass
class Bench:
    server: LiveServer
    file_bytes: int

    def ask(self, model: str) -> tuple[float, str]:
        """Seconds until the whole answer of eight tokens, and the answer."""
        began = time.monotonic()
        body = {"model": model, "prompt": "The capital", "max_tokens": 8, "ignore_eos": True}
        answer = self.server.client.post(
            "/v1/completions", json=body | {"temperature": 0}, timeout=LOAD_S
        )
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began, answer.json()["choices"][0]["text"]

    def row(self, model: str) -> dict[str, Any]:
        rows = self.server.client.get("/admin/models").json()["data"]
        found: dict[str, Any] = next(row for row in rows if row["id"] == model)
        return found

    def sleep(self, model: str) -> float:
        """Seconds until it has left the GPU."""
        began = time.monotonic()
        self.server.client.post(f"/admin/models/{model}/sleep").raise_for_status()
        while self.row(model)["state"] not in ("asleep", "cold"):
            assert time.monotonic() - began < LOAD_S
            time.sleep(0.01)
        return time.monotonic() - began


def gpu_gib() -> float | None:
    """In use on the first GPU."""
    if not HAS_GPU:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, check=True).stdout.split()[0]) / 1024


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    # Imports torch, for which the other tests need not wait.
    from tests.gpu.large import LARGE, SMALL, make_large

    directory = tmp_path_factory.mktemp("sleep")
    file_bytes = make_large(directory / "checkpoint", LARGE if HAS_GPU else SMALL)
    shared = {"source": "./checkpoint", "gpu_memory": "1GiB", "load": "on_demand"}
    rows = [{"id": ONE, "sleep_level": 1, **shared}, {"id": TWO, "sleep_level": 2, **shared}]
    registry = write_registry(directory / "registry.yaml", rows)
    # Of the planner's making, so that one of the two has room and not both.
    total_bytes = int(1.4 * file_bytes) + 6 * GIB if HAS_GPU else 5 * GIB
    environment = {
        "TENUTO_GPUS": f"{total_bytes // GIB}GiB",
        "TENUTO_ADMIN_KEYS": "sk-owner",
        "TENUTO_TURN_S": "0",
        "TENUTO_MAX_WAIT_S": str(LOAD_S),
    }
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        server.client.headers["authorization"] = "Bearer sk-owner"
        yield Bench(server, file_bytes)


def test_sleep_wake_and_swap(bench: Bench, figures: dict[str, Any]) -> None:
    found: dict[str, float | None] = {"weights_gib": bench.file_bytes / GIB}
    figures["sleep"] = found
    found["cold_load_s"], first = bench.ask(ONE)
    found["gpu_gib_awake"] = gpu_gib()
    assert bench.row(ONE)["can_sleep"] is HAS_GPU
    found["sleep_s"] = bench.sleep(ONE)
    found["gpu_gib_asleep"] = gpu_gib()
    found["wake_s"], again = bench.ask(ONE)
    answers = {ONE: first, TWO: bench.ask(TWO)[1]}
    for model, direction in ((ONE, "level_2_to_1"), (TWO, "level_1_to_2")):
        found[f"swap_s_{direction}"], text = bench.ask(model)
        assert text == answers[model]
    found["gpu_gib_one_awake_one_asleep"] = gpu_gib()
    assert again == first
    assert bench.row(ONE)["failed_wakes"] == bench.row(TWO)["failed_wakes"] == 0
    assert (bench.row(ONE)["wake_s"] is not None) is HAS_GPU
