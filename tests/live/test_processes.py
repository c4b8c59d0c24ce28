"""Processes, signals and their ends, on real servers and real engine processes."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.benchmarks.processes import descendants
from tests.live.conftest import MODEL, ROOT, LiveServer, launched, write_registry

pytestmark = pytest.mark.live
FIRST_ANSWER_S = 20
IMPORT_LAG_S = 2.0


@contextmanager
def streaming(server: LiveServer, max_tokens: int) -> Iterator[Iterator[str]]:
    """A stream of the given length, whose first token has arrived; the data of its events."""
    body = {"model": MODEL, "prompt": "The", "max_tokens": max_tokens, "ignore_eos": True}
    with server.client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        data = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        next(data)
        yield data


def finish_of(events: list[str]) -> str | None:
    choice = json.loads(events[-2])["choices"][0]
    return choice["finish_reason"] if events[-1] == "[DONE]" else None


def registry_in(directory: Path, *rows: dict[str, Any]) -> str:
    return str(write_registry(directory / "registry.yaml", list(rows or ({"id": MODEL},))))


def sockets(pid: int) -> set[str]:
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return {link for link in links if link.startswith("socket:")}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def all_gone(pids: list[int], timeout_s: float) -> bool:
    began = time.monotonic()
    while any(map(is_alive, pids)):
        if time.monotonic() - began > timeout_s:
            return False
        time.sleep(0.05)
    return True


def test_health_answers_while_models_load(tmp_path: Path) -> None:
    began = time.monotonic()
    registry = registry_in(tmp_path)
    with launched(tmp_path, "--registry", registry, ready=False) as server:
        lags, readiness = [], 503
        while readiness != 200:
            asked = time.monotonic()
            assert server.client.get("/health").status_code == 200
            lags.append(time.monotonic() - asked)
            readiness = server.client.get("/health/readiness").status_code
            time.sleep(0.01)
        answer = server.chat("Hello!", temperature=0)
        first_answer_s = time.monotonic() - began
        assert answer.status_code == 200
        assert max(lags) < IMPORT_LAG_S
        assert first_answer_s < FIRST_ANSWER_S
        log = server.log.read_text()
        assert "vLLM imported in" in log
        assert f"model {MODEL}: engine started in" in log


def test_sigterm_drains(tmp_path: Path) -> None:
    with launched(tmp_path, "--registry", registry_in(tmp_path)) as server:
        below = descendants(server.process.pid)
        with streaming(server, max_tokens=400) as events:
            for pid in server.engine_pids():
                assert not sockets(pid) & sockets(server.process.pid)
            server.process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=server.url) as other:
                refused = other.post("/v1/chat/completions", json={})
                unready = other.get("/health/readiness")
                assert other.get("/health").status_code == 200
            for answer in (refused, unready):
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
            assert finish_of(list(events)) == "length"
        assert server.process.wait(timeout=20) == 0
        assert all_gone(below, 5)


def test_sigint_to_the_group_lets_a_stream_finish(tmp_path: Path) -> None:
    with launched(tmp_path, "--registry", registry_in(tmp_path)) as server:
        with streaming(server, max_tokens=300) as events:
            os.killpg(server.process.pid, signal.SIGINT)
            assert finish_of(list(events)) == "length"
        assert server.process.wait(timeout=20) == 0


def test_a_drain_that_takes_too_long_ends_streams_with_an_error(tmp_path: Path) -> None:
    environment = {"TENUTO_DRAIN_S": "0.2"}
    registry = registry_in(tmp_path)
    with launched(tmp_path, "--registry", registry, environment=environment) as server:
        with streaming(server, max_tokens=8000) as events:
            server.process.send_signal(signal.SIGTERM)
            received = list(events)
        assert json.loads(received[-1])["error"]["code"] == "503"
        assert not any('"finish_reason":"' in event for event in received)
        assert server.process.wait(timeout=20) == 0


def test_lost_engines_and_a_lost_server(tmp_path: Path) -> None:
    registry = registry_in(tmp_path, {"id": MODEL}, {"id": "other"})
    with launched(tmp_path, "--registry", registry) as server:
        first, second = server.engine_pids()
        statuses: list[int] = []
        body = {"max_tokens": 600, "ignore_eos": True}
        unstreamed = threading.Thread(
            target=lambda: statuses.append(server.complete("The", **body).status_code)
        )
        unstreamed.start()
        with streaming(server, max_tokens=8000) as events:
            os.kill(first, signal.SIGKILL)
            received = list(events)
        assert json.loads(received[-1])["error"]["type"] == "ServiceUnavailableError"
        assert not any('"finish_reason":"' in event for event in received)
        assert server.complete("The", model="other").status_code == 200
        # Its client had received nothing: it is run again on the engine that takes the place.
        unstreamed.join(timeout=60)
        assert statuses == [200]
        assert server.chat("Hello!").status_code == 200
        assert server.client.get("/health/readiness").status_code == 200
        below = descendants(server.process.pid)
        assert second in below
        assert first not in below
        server.process.kill()
        server.process.wait()
        assert all_gone(below, 5)


def test_a_model_that_does_not_start_ends_the_server_with_its_cause(tmp_path: Path) -> None:
    registry = registry_in(tmp_path, {"id": MODEL, "gpu_memory": "1MiB"})
    with launched(tmp_path, "--registry", registry, ready=False) as server:
        assert server.process.wait(timeout=60) == 1
        lines = [line for line in server.log.read_text().splitlines() if f"model {MODEL}:" in line]
        assert len(lines) == 1
        assert "KV cache" in lines[0]


def test_a_crash_spills_no_request(tmp_path: Path) -> None:
    arguments = {"worker_cls": "tests.live.faulty_worker.FaultyWorker"}
    registry = registry_in(tmp_path, {"id": MODEL, "engine_args": arguments})
    environment = {"PYTHONPATH": str(ROOT), "TENUTO_LOG_LEVEL": "debug"}
    with launched(tmp_path, "--registry", registry, environment=environment) as server:
        secret = "Xylophone quartz jumps"
        token_ids = server.client.post("/tokenize", json={"model": MODEL, "prompt": secret}).json()[
            "tokens"
        ]
        assert server.chat(secret, stop="zebra!").status_code == 503
        log = server.log.read_text()
        assert "worker failed on purpose" in log
        for content in ("Xylophone", "zebra!", str(token_ids)[1:-1]):
            assert content not in log
