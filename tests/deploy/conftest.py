"""Other people's programs, from Debian's packages, as processes of the tests' own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTALL_S = 300
START_S = 20.0
END_S = 10
Installed = Callable[..., None]


@pytest.fixture(scope="session")
def installed() -> Installed:
    """Has these Debian packages, or fails with what is missing."""

    def install(*packages: str) -> None:
        command = [str(ROOT / "scripts" / "debian"), *packages]
        run = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        assert run.returncode == 0, run.stdout + run.stderr

    return install


@contextmanager
def child(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`, ended at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(END_S)


def wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < START_S:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=START_S).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError(f"it does not listen:\n{log.read_text()}")


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """Each of these must be there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
