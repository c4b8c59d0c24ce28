"""The stack that the hosted API runs, LiteLLM's proxy over vLLM's own server, on the demo model."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.conftest import MODEL, ROOT

SCRIPT = ROOT / "scripts" / "reference_stack"
READY = re.compile(r"ready (?P<url>http://\S+) vllm=(?P<vllm_url>http://\S+) key=(?P<key>\S+)\n")
# The script gives up by itself after 120 s; the installation is a matter of a minute.
INSTALL_AND_START_S = 360
END_S = 30


@dataclass
class Stack:
    """A running `scripts/reference_stack`. `client` has the proxy's key."""

    process: subprocess.Popen[str]
    url: str
    key: str = field(repr=False)
    vllm_url: str
    client: httpx.Client = field(repr=False)

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def address(self, server: str) -> str:
        return {"proxy": self.url, "vllm": self.vllm_url}[server]

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
                yield Stack(process, **ready.groupdict(), client=client)
        finally:
            # Never killed: only the script knows what it has to end.
            process.terminate()
            process.wait(timeout=END_S)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with launched(tmp_path_factory.mktemp("stack")) as running:
        yield running
