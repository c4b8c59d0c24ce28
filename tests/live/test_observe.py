"""What real engines say of themselves: metrics and logs."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from vllm.v1.metrics.loggers import PrometheusStatLogger

from tenuto.engine.vllm_stats import EngineReadings
from tests.live.conftest import MODEL, ROOT, LiveServer, launched, write_registry

pytestmark = pytest.mark.live
LONG_PROMPT = "The front end counts what the engine says. " * 40


def engine_metrics(server: LiveServer) -> dict[str, float]:
    """By name, without what all have in common."""
    text = server.client.get("/metrics").raise_for_status().text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    own = [s for s in samples if s.name.startswith("tenuto_engine_")]
    return {s.name.removeprefix("tenuto_engine_").removesuffix("_total"): s.value for s in own}


def until(server: LiveServer, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Engines say it twice a second."""
    began = time.monotonic()
    while not condition(found := engine_metrics(server)):
        assert time.monotonic() - began < 10, found
        time.sleep(0.05)
    return found


def test_what_the_engine_says(tmp_path: Path) -> None:
    """Two sequences run, and one waits; the KV cache has not room for both to their end."""
    row = {"id": MODEL, "max_model_len": 1024, "gpu_memory": "1MiB"}
    row |= {"engine_args": {"max_num_seqs": 2}}
    registry = write_registry(tmp_path / "registry.yaml", [row])
    with launched(tmp_path, "--registry", str(registry)) as server:
        asked = {"max_tokens": 900, "ignore_eos": True}
        with ThreadPoolExecutor() as aside:
            running = [aside.submit(server.complete, f"{n}", **asked) for n in range(3)]
            until(server, lambda e: (e["running_sequences"], e["waiting_sequences"]) == (2, 1))
            until(server, lambda e: e["kv_cache_usage_ratio"] > 0.5)
            assert all(answer.result().status_code == 200 for answer in running)
        done = until(server, lambda e: e["running_sequences"] == e["waiting_sequences"] == 0)
        assert done["kv_cache_usage_ratio"] == 0
        assert done["preemptions"] >= 1
        for _ in range(2):
            cached = server.complete(LONG_PROMPT, max_tokens=1).json()["usage"]
        cached_tokens = cached["prompt_tokens_details"]["cached_tokens"]
        found = until(server, lambda e: e["prefix_cache_hits_tokens"] >= cached_tokens > 0)
        assert found["prefix_cache_queries_tokens"] >= 2 * cached["prompt_tokens"]


def logged(server: LiveServer, route: str) -> dict[str, Any]:
    """The line of the only request for it, which is written after its answer."""
    began = time.monotonic()
    while True:
        lines: list[dict[str, Any]] = list(map(json.loads, server.log.read_text().splitlines()))
        if found := [line for line in lines if line.get("route") == route]:
            [request] = found
            return request
        assert time.monotonic() - began < 5, lines
        time.sleep(0.02)


def test_every_line_is_json_and_names_its_model(tmp_path: Path) -> None:
    worker = {"worker_cls": "tests.live.faulty_worker.FaultyWorker"}
    registry = write_registry(tmp_path / "registry.yaml", [{"id": MODEL, "engine_args": worker}])
    environment = {"TENUTO_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
    with launched(tmp_path, "--registry", str(registry), environment=environment) as server:
        answer = server.chat("Hello!", max_tokens=4)
        assert answer.status_code == 503
        request = logged(server, "/v1/chat/completions")
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert request["request_id"] == answer.headers["x-request-id"]
    assert (request["status"], request["model"]) == (503, MODEL)
    of_engine = [line for line in lines if line["logger"].startswith("vllm.")]
    assert of_engine
    assert all(line["model"] == MODEL for line in of_engine if line["level"] == "error")


def test_all_that_vllm_calls_of_its_logger_is_ours() -> None:
    """What were inherited would miss the metrics of which it is made."""
    theirs = {name for name in vars(PrometheusStatLogger) if not name.startswith("_")}
    assert theirs - {"log_metrics_info"} <= vars(EngineReadings).keys()
