"""Real servers with real vLLM on the CPU: what the live tests talk to."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from scripts.benchmarks.processes import command, descendants

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "server" / "tenuto" / "demo"
MODEL = "tenuto-demo"
THINKER = "thinker"
START_S = 90


@dataclass
class LiveServer:
    """A `tenuto serve` process of its own session; `log` holds what it printed."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: httpx.Client = field(repr=False)

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        return self.client.post(
            "/v1/completions", json={"model": MODEL, "prompt": prompt, **fields}
        )

    def unfinished(self, model: str = MODEL) -> int:
        """The engine's running and waiting requests, as `/metrics` tells them."""
        text = self.client.get("/metrics").raise_for_status().text
        found = re.search(rf'unfinished_requests{{model="{re.escape(model)}"}} (\S+)', text)
        return int(float(found[1])) if found else 0

    def wait_ready(self) -> float:
        """Seconds from now until the eager models are ready."""
        began = time.monotonic()
        while time.monotonic() - began < START_S:
            if self.client.get("/health/readiness").status_code == 200:
                return time.monotonic() - began
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def engine_pids(self) -> list[int]:
        """Processes below the server that are named as vLLM's engines are."""
        return [pid for pid in descendants(self.process.pid) if b"EngineCore" in command(pid)]


def write_registry(path: Path, models: list[dict[str, Any]]) -> Path:
    """A registry of demo checkpoints; each row may override what the demo's entry says."""
    base = {"source": str(DEMO / "checkpoint"), "max_model_len": 8192, "gpu_memory": "64MiB"}
    path.write_text(yaml.safe_dump({"models": [{**base, "load": "eager", **m} for m in models]}))
    return path


TENUTO = (str(Path(sys.executable).with_name("tenuto")),)


@contextmanager
def launched(
    directory: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    ready: bool = True,
    program: Sequence[str] = TENUTO,
) -> Iterator[LiveServer]:
    """`tenuto serve` on a free port. Ended, and its group killed, when the test leaves."""
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "serve", "--port", "0", *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, "TENUTO_DRAIN_S": "10", **(environment or {})},
            start_new_session=True,
            cwd=directory,
        )
    try:
        url = listening_at(process, log)
        with httpx.Client(base_url=url, timeout=60) as client:
            server = LiveServer(process, url, log, client)
            if ready:
                server.wait_ready()
            yield server
    finally:
        end(process)


def listening_at(process: subprocess.Popen[bytes], log: Path) -> str:
    began = time.monotonic()
    while time.monotonic() - began < START_S:
        found = re.search(r"listening on ([^\s\"]+)", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    below = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests that only ask: the demo model, and the same as `second`."""
    directory = tmp_path_factory.mktemp("live")
    registry = write_registry(
        directory / "registry.yaml",
        [
            {"id": MODEL, "aliases": ["demo"]},
            {"id": "owner/second", "max_model_len": 2048},
            {"id": "rejecting", "system_prompt": "reject", "load": "on_demand"},
            # No engine starts with so small a KV cache.
            {"id": "broken", "gpu_memory": "1MiB", "load": "on_demand"},
        ],
    )
    with launched(directory, "--registry", str(registry)) as server:
        yield server


@pytest.fixture(scope="session")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo model with LoRAs, and an embedding model, in one server."""
    # Imports torch, for which the other live tests need not wait.
    from tests.live.made import write_extended

    directory = tmp_path_factory.mktemp("extended")
    with launched(directory, "--registry", str(write_extended(directory))) as server:
        yield server


# What the thinker's template makes of a request's arguments; without any it is the demo's. It does
# not show the tools: the demo model has not learnt to think beside them.
ECHO = """{%- set tools = none %}
{%- if colour is defined or reasoning_effort is defined %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
    {{- 'colour=%s effort=%s' % (colour, reasoning_effort) }}
    {{- ' thinking=%s<|eot_id|>' % enable_thinking }}
{%- endif %}
"""


@pytest.fixture(scope="session")
def parsing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo model with parsers: it calls tools, and as `thinker` it reasons. Both are greedy
    unless a request says otherwise."""
    directory = tmp_path_factory.mktemp("parsing")
    template = (DEMO / "checkpoint" / "chat_template.jinja").read_text()
    (directory / "echo.jinja").write_text(
        template.replace("{{- bos_token }}", "{{- bos_token }}" + ECHO)
    )
    shared = {"tool_parser": "llama3_json", "sampling_defaults": {"temperature": 0}}
    thinker = {"reasoning_parser": "deepseek_r1", "chat_template": "echo.jinja"}
    registry = write_registry(
        directory / "registry.yaml",
        [{"id": MODEL, **shared}, {"id": THINKER, **shared, **thinker}],
    )
    with launched(directory, "--registry", str(registry)) as server:
        yield server


@pytest.fixture(scope="session")
def api(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client
