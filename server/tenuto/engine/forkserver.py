"""Engine processes: forked from a server that has vLLM imported, and ended with their parent.

Never forked from the serving process: such an engine would inherit its listener and every client's
socket. Must be usable before vLLM is imported, so it imports nothing of it.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

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
# vLLM reads these when it is imported, here and in the fork server.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Its messages quote the constraint.
    "LLGUIDANCE_LOG_LEVEL": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class EngineProcess(ForkServerProcess):
    """A vLLM engine process in a session of its own, so that Ctrl-C reaches the server alone."""

    def __init__(self, cause: Connection, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cause = cause

    def run(self) -> None:
        os.setsid()
        _die_with_parent()
        for name in CONTENT_LOGGERS:
            logging.getLogger(name).addFilter(lambda record: False)
        # The server reports why an engine did not start, in one line.
        logging.getLogger("vllm.v1.engine.core").addFilter(lambda r: r.msg != START_FAILURE)
        try:
            super().run()
        except Exception as error:
            self._cause.send(first_line(error))
            sys.exit(1)


class EngineContext(ForkServerContext):
    """Given to vLLM in place of its own multiprocessing context."""

    def __init__(self) -> None:
        super().__init__()
        self.process: EngineProcess | None = None
        self._cause: Connection | None = None

    def start_server(self) -> None:
        """Starts the fork server; its imports go on in the background."""
        self.set_forkserver_preload(["tenuto.engine.quiet", "tenuto.engine.preload"])
        forkserver.ensure_running()

    def Process(  # type: ignore[override]
        self,
        *,
        target: Callable[..., object],
        name: str,
        kwargs: Mapping[str, Any],
    ) -> EngineProcess:
        self._cause, child = multiprocessing.Pipe(duplex=False)
        self.process = EngineProcess(child, target=target, name=name, kwargs=kwargs)
        return self.process

    def cause(self) -> str | None:
        """Why the last process failed, in one line; None when it said nothing."""
        if self._cause is None or not self._cause.poll():
            return None
        return str(self._cause.recv())


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
