"""Engine processes: forked from a server that has vLLM imported, and ended with their parent.

Never forked from the serving process: such an engine would inherit its listener and every client's
socket. Must be usable before vLLM is imported, so it imports nothing of it.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar

from tenuto.engine import phases

# These write request content when an engine fails or a grammar rejects a token.
CONTENT_LOGGERS = (
    "vllm.logging_utils.dump_input",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.structured_output",
    "vllm.v1.structured_output.backend_guidance",
    "vllm.v1.structured_output.backend_xgrammar",
    "vllm.v1.structured_output.utils",
)
START_FAILURE = "EngineCore failed to start."
# Between two looks for a process to kill: it may be made after the first.
KILL_EVERY_S = 0.1
T = TypeVar("T")
# Of the process that it is called in: with the model whose engine that is.
SetUpLogs = Callable[[str | None], None]
# CUDA reads it when a process uses a GPU for the first time.
DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
# vLLM reads these when it is imported, here and in the fork server.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Its lines then go where ours go.
    "VLLM_CONFIGURE_LOGGING": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Its messages quote the constraint.
    "LLGUIDANCE_LOG_LEVEL": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # CUDA counts the GPUs as their driver does, which says how large they are.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}


def no_logs(model: str | None) -> None:
    """Leaves them as they are."""


class EngineProcess(ForkServerProcess):
    """A vLLM engine process in a session of its own, so that Ctrl-C reaches the server alone.

    Through `pipe` it says the phases of its start, and why it failed. It sees the GPUs that
    `devices` names in CUDA's words; all when it is None. `set_up_logs` is called there.
    """

    def __init__(
        self, pipe: Connection, devices: str | None, set_up_logs: Callable[[], None], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._pipe = pipe
        self._set_up_logs = set_up_logs
        self._devices = devices
        self._made_at = time.monotonic()

    def run(self) -> None:
        self._pipe.send({"import_s": phases.here.pop("import", 0.0)})
        phases.here["process"] = time.monotonic() - self._made_at
        phases.tell = self._tell
        # Python's default: vLLM's semaphores leave no name behind then when the process is killed.
        multiprocessing.set_start_method("fork", force=True)
        os.setsid()
        _die_with_parent()
        if self._devices is not None:
            os.environ[DEVICES_VARIABLE] = self._devices
        self._set_up_logs()
        for name in CONTENT_LOGGERS:
            logging.getLogger(name).addFilter(lambda record: False)
        # The server reports why an engine did not start, in one line.
        logging.getLogger("vllm.v1.engine.core").addFilter(lambda r: r.msg != START_FAILURE)
        try:
            super().run()
        except Exception as error:
            self._pipe.send({"cause": first_line(error)})
            sys.exit(1)

    def _tell(self, made: phases.Phases) -> None:
        self._pipe.send({"phases": dict(made)})


class EngineContext(ForkServerContext):
    """Given to vLLM in place of its own multiprocessing context.

    `model_id` and `devices` are the next process's: its model, and its GPUs as the server counts
    them, all when there are none. `set_up_logs` is called in each process with its model's id.
    `process` is that of the start that runs, or of the last one.
    """

    def __init__(self, set_up_logs: SetUpLogs = no_logs) -> None:
        super().__init__()
        self.set_up_logs = set_up_logs
        self.model_id = ""
        self.devices: Sequence[int] = ()
        self.process: EngineProcess | None = None
        self._pipe: Connection | None = None
        self._said: dict[str, Any] = {}
        self._given_up = False

    def start_server(self) -> None:
        """Starts the fork server; its imports go on in the background."""
        # Every process imports the main script once more, which is the command line.
        modules = ["tenuto.engine.quiet", "tenuto.engine.preload", "tenuto.cli"]
        self.set_forkserver_preload(modules)
        forkserver.ensure_running()

    def Process(  # type: ignore[override]
        self,
        *,
        target: Callable[..., object],
        name: str,
        kwargs: Mapping[str, Any],
    ) -> EngineProcess:
        if self._given_up:
            raise RuntimeError("the start was given up")
        self._said = {}
        self._pipe, child = multiprocessing.Pipe(duplex=False)
        devices = _visible(self.devices)
        set_up_logs = partial(self.set_up_logs, self.model_id)
        self.process = EngineProcess(
            child, devices, set_up_logs, target=target, name=name, kwargs=kwargs
        )
        return self.process

    async def in_thread(self, start: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> T:
        """What `start` returns, one at a time. When it is cancelled its process is killed, so that
        it ends at once; what it may still return is closed."""
        self.process, self._given_up = None, False
        starting = asyncio.get_running_loop().run_in_executor(None, start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._given_up = True
            while not starting.done():
                self._kill()
                await asyncio.wait({starting}, timeout=KILL_EVERY_S)
            if starting.exception() is None:
                await close(starting.result())
            raise

    def _kill(self) -> None:
        # Whoever has made it may have closed it.
        with suppress(ValueError):
            if self.process is not None and self.process.is_alive():
                self.process.kill()

    def cause(self) -> str | None:
        """Why the last process failed, in one line; None when it said nothing."""
        return self._heard().get("cause")

    def phases(self) -> Mapping[str, float]:
        """Seconds by phase of the last process's start."""
        said: Mapping[str, float] = self._heard().get("phases", {})
        return said

    def import_s(self) -> float:
        """What the fork server's import took; 0 before the first process."""
        return float(self._heard().get("import_s", 0.0))

    def _heard(self) -> dict[str, Any]:
        while self._pipe is not None and self._pipe.poll():
            self._said |= self._pipe.recv()
        return self._said


def prepare_environment() -> None:
    """To be called before the fork server starts and before vLLM is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if _is_cpu_build():
        # Without a GPU the models are small: with two threads on two busy cores one token of the
        # demo model takes 80 ms and more, with one thread 5 ms.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _is_cpu_build() -> bool:
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _visible(devices: Sequence[int]) -> str | None:
    """CUDA's words for the GPUs: the server itself may have been given some of the host's."""
    given = os.environ.get(DEVICES_VARIABLE)
    names = given.split(",") if given else None
    return ",".join(names[i] if names else str(i) for i in devices) or None


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
