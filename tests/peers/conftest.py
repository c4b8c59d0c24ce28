"""The stack that the hosted API runs, LiteLLM's proxy over vLLM's own server, on the demo model."""

import os
import re
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.live.conftest import MODEL, ROOT

SCRIPT = ROOT / "scripts" / "reference_stack"
READY = re.compile(r"ready (?P<url>http://\S+) vllm=(?P<vllm_url>http://\S+) key=(?P<key>\S+)\n")
# The script gives up by itself after 120 s; the installation is a matter of a minute.
INSTALL_AND_START_S = 360
END_S = 30
# The script looks after its servers, and ends the one that is left.
ENDING_S = 1
T = TypeVar("T")


@dataclass
class Stack:
    """A running `scripts/reference_stack`. `client` has the proxy's key."""

    process: subprocess.Popen[str]
    url: str
    key: str = field(repr=False)
    vllm_url: str
    client: httpx.Client = field(repr=False)
    logs: Path

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def address(self, server: str) -> str:
        return {"proxy": self.url, "vllm": self.vllm_url}[server]

    def last_words(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in sorted(self.logs.glob("*.log")))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=END_S)


@contextmanager
def launched(directory: Path) -> Iterator[Stack]:
    """The stack on free ports, with a key of its own; its logs are in `directory`."""
    errors = directory / "stack.log"
    with errors.open("w") as output:
        process = subprocess.Popen(
            [SCRIPT, "--port", "0", "--log-dir", directory],
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "LITELLM_MASTER_KEY"},
        )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            ready = READY.fullmatch(process.stdout.readline())
            assert ready, "\n".join(log.read_text() for log in sorted(directory.glob("*.log")))
            headers = {"authorization": f"Bearer {ready['key']}"}
            with httpx.Client(base_url=ready["url"], headers=headers, timeout=60) as client:
                yield Stack(process, **ready.groupdict(), client=client, logs=directory)
        finally:
            # Never killed: only the script knows what it has to end.
            process.terminate()
            process.wait(timeout=END_S)


@dataclass
class Stacks:
    """The stack of all tests, and another when it has crashed: its Python does, now and then."""

    factory: pytest.TempPathFactory
    open: ExitStack
    newest: Stack | None = None

    def running(self) -> Stack:
        if self.newest is None or self.newest.process.poll() is not None:
            directory = self.factory.mktemp("stack")
            self.newest = self.open.enter_context(launched(directory))
        return self.newest

    def through(self, work: Callable[[Stack], T]) -> T:
        """What `work` gives; when the stack ended under it, what it gives a second time."""
        stack = self.running()
        result = work(stack)
        try:
            stack.process.wait(timeout=ENDING_S)
        except subprocess.TimeoutExpired:
            return result
        warnings.warn(f"the stack ended by itself:\n{stack.last_words()}", stacklevel=2)
        return work(self.running())


@pytest.fixture(scope="session")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stacks]:
    with ExitStack() as running:
        yield Stacks(tmp_path_factory, running)


@pytest.fixture
def stack(stacks: Stacks) -> Stack:
    return stacks.running()
