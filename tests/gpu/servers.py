"""This server and vLLM's own, each as its users start it, with the same model and KV cache."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from scripts.benchmarks.peers import KEY, MODEL, VLLM_ENVIRONMENT, free_port, started
from tests.gpu.conftest import DEVICES
from tests.live.conftest import launched, write_registry

LOAD_S = 900
MAX_MODEL_LEN = 2048


@contextmanager
def tenuto(directory: Path, checkpoint: Path, kv_cache_bytes: int) -> Iterator[str]:
    """The address of one that has answered."""
    row: dict[str, Any] = {"id": MODEL, "source": str(checkpoint), "load": "on_demand"}
    row |= {"max_model_len": MAX_MODEL_LEN, "gpu_memory": kv_cache_bytes}
    registry = write_registry(directory / "registry.yaml", [row])
    environment = {"TENUTO_MAX_WAIT_S": str(LOAD_S), "TENUTO_API_KEYS": KEY}
    environment["TENUTO_STATE_DIR"] = str(directory / "state")
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        chat(server.url, "Hello!", 8)
        yield server.url


@contextmanager
def vllm(directory: Path, checkpoint: Path, kv_cache_bytes: int) -> Iterator[str]:
    """The address of one that has answered."""
    port, log = free_port(), directory / "vllm.log"
    options = {"host": "127.0.0.1", "port": port, "model": checkpoint, "served-model-name": MODEL}
    options |= {"max-model-len": MAX_MODEL_LEN, "kv-cache-memory-bytes": kv_cache_bytes}
    options["generation-config"] = "vllm"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [f"--{name}={value}" for name, value in options.items()]
    if not DEVICES:
        command += ["--enforce-eager", "--distributed-executor-backend=uni"]
    url, ended = f"http://127.0.0.1:{port}", time.monotonic() + LOAD_S
    with started(command, log, VLLM_ENVIRONMENT) as process:
        while not _is_up(url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < ended, log.read_text()[-4000:]
            time.sleep(0.2)
        chat(url, "Hello!", 8)
        yield url


def chat(url: str, content: str, max_tokens: int) -> str:
    """The greedy answer."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0}
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        json=body | {"max_tokens": max_tokens},
        headers={"authorization": f"Bearer {KEY}"},
        timeout=LOAD_S,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
