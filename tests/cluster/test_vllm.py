"""Real vLLM on two hosts: the same answers, and the whole conformance kit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.hosts import WORKERS, Hosts
from scripts.benchmarks.processes import command, descendants
from tests.cluster.conftest import front
from tests.live.conftest import MODEL, TENUTO, LiveServer
from tests.live.test_conformance import KEY, ORIGIN, REJECTING, assert_conforms

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
GREETING = "Hello! I am the demo model of Tenuto. How can I help you?"


@pytest.fixture(scope="module")
def real(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    models: list[dict[str, Any]] = [
        {"id": MODEL, "replicas": {"min": 2, "max": 2}},
        {"id": REJECTING, "system_prompt": "reject"},
    ]
    directory = tmp_path_factory.mktemp("real")
    origins = f'["{ORIGIN}"]'
    with front(
        hosts, directory, models, program=TENUTO, api_keys=KEY, cors_origins=origins
    ) as server:
        server.client.headers["authorization"] = f"Bearer {KEY}"
        yield server


def num_replicas(hosts: Hosts, ip: str) -> int:
    """Processes on that host that serve the demo model."""
    below = descendants(hosts.processes[ip].pid)
    return sum(b"ServeReplica:tenuto.tenuto-demo" in command(pid) for pid in below)


def test_each_host_answers_correctly(hosts: Hosts, real: LiveServer) -> None:
    assert [num_replicas(hosts, ip) for ip in WORKERS] == [1, 1]
    answers = [real.chat("Hello", temperature=0, cache_salt=str(n)) for n in range(16)]
    assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {GREETING}


def test_the_conformance_kit_passes_unchanged(real: LiveServer, tmp_path: Path) -> None:
    assert_conforms(real, tmp_path)
