"""The clients' own environments, and how a test runs one of them against the live server."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The server of the live tests; a fixture must be a name of this module.
from tests.live.conftest import LiveServer
from tests.live.conftest import live as live

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# The first test of a run makes the environments, which is a matter of minutes.
INSTALL_S = 480
CLIENT_S = 90
IDLE_S = 5

Run = Callable[..., str]


@pytest.fixture(scope="session")
def environments() -> Path:
    made = subprocess.run([ROOT / "scripts" / "clients"], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / ".clients"


@pytest.fixture(scope="session")
def run(
    environments: Path, live: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Runs a command in a client's environment, with none of this machine's own settings or
    caches and without a network but the server's, and returns what it printed."""
    home = tmp_path_factory.mktemp("home")

    def run_in(
        name: str, *command: str, stdin: str = "", cwd: Path | None = None, **more: str
    ) -> str:
        program = environments / name / "bin" / command[0]
        ran = subprocess.run(
            [program, *command[1:]],
            input=stdin,
            env={
                "PATH": os.defpath,
                "HOME": str(home),
                "TENUTO_URL": live.url,
                # Whatever tries to leave this machine fails at once.
                "HTTP_PROXY": "http://127.0.0.1:9",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                "NO_PROXY": "127.0.0.1,localhost",
                **more,
            },
            cwd=cwd or program.parent,
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run_in


def last_line(printed: str) -> Any:
    """What a script of `scripts/` reports; libraries may print before it."""
    return json.loads(printed.splitlines()[-1])


def wait_idle(server: LiveServer) -> None:
    """Until the engine has no request left, which a client that left must bring about."""
    began = time.monotonic()
    while server.unfinished():
        assert time.monotonic() - began < IDLE_S


def script(name: str) -> str:
    return str(HERE / "scripts" / name)
