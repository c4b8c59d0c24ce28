"""A Ray cluster of three hosts on this machine, and front ends that use it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.hosts import WORKERS, Hosts, ray_hosts
from tests.live.conftest import LiveServer, launched, write_registry

SCRIPTED = (sys.executable, "-m", "scripts.benchmarks.scripted_replicas")
# More than is ever asked for: what a test leaves behind is in nobody's way.
NUM_CPUS = 16


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    with ray_hosts(dict.fromkeys(WORKERS, NUM_CPUS)) as found:
        yield found


@contextmanager
def front(
    hosts: Hosts,
    directory: Path,
    models: list[dict[str, Any]],
    *,
    ip: str = WORKERS[0],
    interval_s: float = 0.02,
    program: Sequence[str] = SCRIPTED,
    **settings: str,
) -> Iterator[LiveServer]:
    """A front end on that host, over scripted replicas where nothing else is said."""
    directory.mkdir(exist_ok=True)
    registry = write_registry(directory / "registry.yaml", models)
    environment = {
        **hosts.environment,
        "TENUTO_NODE_IP": ip,
        "TENUTO_STATE_DIR": str(directory / "state"),
        "SCRIPTED_INTERVAL_S": str(interval_s),
        **{f"TENUTO_{name.upper()}": value for name, value in settings.items()},
    }
    arguments = ("--cluster", hosts.address, "--registry", str(registry), "--watch")
    with launched(directory, *arguments, environment=environment, program=program) as server:
        yield server


def replica_of(server: LiveServer, model: str, **fields: Any) -> int:
    """The id of the process that answers."""
    answer = server.complete("Who?", model=model, max_tokens=1, **fields).raise_for_status()
    return int(answer.json()["choices"][0]["text"])


def wait_unfinished(server: LiveServer, model: str, wanted: int, within_s: float = 20) -> float:
    """Seconds until the model's replicas have so many requests."""
    began = time.monotonic()
    while server.unfinished(model) != wanted:
        assert time.monotonic() - began < within_s, server.unfinished(model)
        time.sleep(0.02)
    return time.monotonic() - began
