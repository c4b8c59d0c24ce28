"""The servers that are compared: each as its users start it, on one checkpoint, engines alike."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from socket import create_server
from typing import Any

import httpx
import yaml

from scripts.benchmarks.asking import answers_of
from scripts.benchmarks.rows import LITELLM, RUST, TENUTO, VLLM
from tenuto.bench.client import Address, Answer
from tenuto.bench.load import Load

ROOT = Path(__file__).parents[2]
MODEL = "one-layer"
# Of every engine; the same as vLLM's server on a CPU takes by itself, where it has a default.
ENGINE: Mapping[str, Any] = {
    "max_model_len": 8192,
    "kv_cache_memory_bytes": 256 << 20,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 2048,
    "distributed_executor_backend": "uni",
}
START_S, END_S = 180, 30
LITELLM_ENVIRONMENT, RUST_BINARY = ROOT / ".clients/litellm-proxy", ROOT / ".clients/vllm-rs"
# LiteLLM takes no shorter one.
KEY = f"sk-{secrets.token_hex(24)}"
# As `scripts/reference_stack` has it: on two cores vLLM's engine and a worker process of its own
# would wait for each other in busy loops. Tenuto's engines have no worker either.
VLLM_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_API_KEY": KEY,
}


@dataclass(frozen=True)
class Server:
    """`pids`: the front alone; what the engine takes is its model's. `leaders`: above all."""

    name: str
    url: str
    pids: Sequence[int]
    leaders: Sequence[int]

    def ask(self, load: Load, turn: int) -> list[Answer]:
        return answers_of(Address(self.url, load.route, KEY), load, turn)


class Peers:
    """Starts servers, which end when it is left. Their logs are in `directory`."""

    def __init__(self, directory: Path, checkpoint: Path) -> None:
        self._directory, self._checkpoint = directory, checkpoint
        self._running = ExitStack()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *raised: object) -> None:
        self._running.close()

    def tenuto(self, *, is_toggled: bool = False) -> Server:
        registry = self._directory / "registry.yaml"
        limits = {name: ENGINE[name] for name in ("max_num_seqs", "max_num_batched_tokens")}
        entry = {
            "id": MODEL,
            "source": str(self._checkpoint),
            "load": "eager",
            "max_model_len": ENGINE["max_model_len"],
            "gpu_memory": f"{ENGINE['kv_cache_memory_bytes'] >> 20}MiB",
            "engine_args": limits,
        }
        registry.write_text(yaml.safe_dump({"models": [entry]}))
        port = free_port()
        environment = {"OMP_NUM_THREADS": "1", "TENUTO_API_KEYS": KEY}
        environment |= {"TENUTO_STATE_DIR": str(self._directory / "state")}
        program = [str(Path(sys.executable).with_name("tenuto"))]
        if is_toggled:
            program = [sys.executable, "-m", "scripts.benchmarks.unobserved"]
        command = [*program, "serve", "--port", str(port), "--registry", str(registry)]
        return self._served(TENUTO, command, port, environment)

    def vllm(self) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        return self._served(VLLM, command + self._vllm_options(port), port, VLLM_ENVIRONMENT)

    def rust(self) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "scripts.benchmarks.vllm_serve"]
        environment = {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(RUST_BINARY)}
        command += self._vllm_options(port)
        environment = VLLM_ENVIRONMENT | environment
        return self._served(RUST, command, port, environment, RUST_BINARY.name)

    def litellm(self, vllm: Server) -> Server:
        config, port = self._directory / "litellm.yaml", free_port()
        params = {"model": f"openai/{MODEL}", "api_base": f"{vllm.url}/v1", "api_key": KEY}
        config.write_text(
            yaml.safe_dump({"model_list": [{"model_name": MODEL, "litellm_params": params}]})
        )
        programs = LITELLM_ENVIRONMENT / "bin"
        command = [str(programs / "python"), str(programs / "litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        environment = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        server = self._served(LITELLM, command, port, environment)
        pids, leaders = [*server.pids, *vllm.pids], [*server.leaders, *vllm.leaders]
        return replace(server, pids=pids, leaders=leaders)

    def _vllm_options(self, port: int) -> list[str]:
        options = {
            "host": "127.0.0.1",
            "port": port,
            "model": self._checkpoint,
            "served-model-name": MODEL,
            "generation-config": "vllm",
            **{name.replace("_", "-"): value for name, value in ENGINE.items()},
        }
        return ["--enforce-eager", *(f"--{name}={value}" for name, value in options.items())]

    def _served(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        environment: Mapping[str, str],
        front: str | None = None,
    ) -> Server:
        """`front`: the name of the process that serves, where it is not the one that is started."""
        log = self._directory / f"{name}.log"
        process = self._running.enter_context(started(command, log, environment))
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_chats(url, process, log)
        pid = process.pid if front is None else _child(process.pid, front)
        return Server(name, url, [pid], [process.pid])


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A process whose output is logged; ended, with its group, at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            # What a leader that was killed left behind.
            with_group_ended(process.pid)


def with_group_ended(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_it_chats(url: str, process: subprocess.Popen[str], log: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    began = time.monotonic()
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as client:
        while time.monotonic() < began + START_S and process.poll() is None:
            try:
                if client.post("/v1/chat/completions", json=body).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise RuntimeError(f"it does not serve:\n{log.read_text()[-4000:]}")


def _child(pid: int, name: str) -> int:
    for status in Path("/proc").glob("[0-9]*/status"):
        text = status.read_text()
        if f"PPid:\t{pid}\n" in text and re.search(rf"^Name:\t{re.escape(name)}$", text, re.M):
            return int(status.parent.name)
    raise RuntimeError(f"process {pid} has no child {name}")
