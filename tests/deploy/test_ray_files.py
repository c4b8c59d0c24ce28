"""The files of deploy/ray: the units' own commands are a cluster on this machine, behind nginx."""

import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts.benchmarks.hosts import HEAD, WORKERS, Hosts
from scripts.benchmarks.peers import free_port
from tests.databases.services import PASSWORD, Postgres, RedisServer
from tests.deploy.conftest import (
    DEPLOY,
    ROOT,
    Installed,
    child,
    nginx_command,
    replaced,
    wait_listening,
)
from tests.live.conftest import write_registry
from tests.sse import DONE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
FILES = DEPLOY / "ray"
UPSTREAM = (FILES / "upstream.conf").read_text()
BIN = Path(sys.executable).parent
SCRIPTED = f"{sys.executable} -m scripts.benchmarks.scripted_replicas"
KEY = {"authorization": "Bearer sk-ada"}
READY_S = 60.0
NUM_STREAMS = 8


def values(unit: str, name: str) -> list[str]:
    lines = unit.replace("\\\n", " ").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def variables(text: str) -> dict[str, str]:
    """Of an environment file."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.M))


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/readiness").status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Machines:
    """Hosts on which the units' commands run, as systemd would run them."""

    hosts: Hosts
    redis: RedisServer
    database: str
    fronts: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, ip: str, instance: str = "") -> str:
        """Returns the name of its log and process."""
        environment, unit = self._environment(name, ip), self._unit(name, ip, instance)
        [command] = values(unit, "ExecStart")
        words = [
            re.sub(r"\$\{(\w+)\}", lambda found: environment.get(found[1], ""), word)
            for word in shlex.split(command)
        ]
        process = f"{ip}:{instance}" if instance else ip
        with (self.hosts.directory / f"{process}.log").open("wb") as log:
            self.hosts.processes[process] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | environment,
                cwd=self.home(ip),
                start_new_session=True,
            )
        return process

    def home(self, ip: str) -> Path:
        path = self.hosts.directory / ip
        path.mkdir(exist_ok=True)
        return path

    def start_front(self, ip: str) -> None:
        """Returns when it is ready."""
        port = self.fronts.setdefault(ip, free_port())
        process = self.hosts.processes[self.start("tenuto-front@", ip, str(port))]
        began = time.monotonic()
        while not is_ready(f"http://{self.front(ip)}"):
            assert process.poll() is None, self.log(ip).read_text()
            assert time.monotonic() - began < READY_S, self.log(ip).read_text()
            time.sleep(0.1)

    def front(self, ip: str) -> str:
        """The name of that host's, which is its address."""
        return f"{ip}:{self.fronts[ip]}"

    def log(self, ip: str) -> Path:
        """The front end's on that host."""
        return self.hosts.directory / f"{self.front(ip)}.log"

    def _unit(self, name: str, ip: str, instance: str) -> str:
        text = (FILES / f"{name}.service").read_text().replace("%i", instance)
        for old, new in {
            "/opt/tenuto/.venv/bin/tenuto": SCRIPTED,
            "/opt/tenuto/.venv/bin": str(BIN),
            "/var/lib/tenuto": str(self.home(ip)),
            "/etc/tenuto": str(self.home(ip)),
            "6379": str(self.hosts.port),
        }.items():
            text = text.replace(old, new)
        return text

    def _environment(self, name: str, ip: str) -> dict[str, str]:
        """What the unit sets, its files win."""
        unit = self._unit(name, ip, "")
        found = dict(
            word.split("=", 1) for line in values(unit, "Environment") for word in line.split()
        )
        for path in values(unit, "EnvironmentFile"):
            found |= variables(self._file(Path(path.removeprefix("-")).name, ip))
        scripted = {"PYTHONPATH": str(ROOT), "SCRIPTED_INTERVAL_S": "0.005"}
        return {**found, **scripted, "TENUTO_API_KEYS": "sk-ada"}

    def _file(self, name: str, ip: str) -> str:
        here = f"127.0.0.1:{self.redis.port}"
        changes: dict[str, Mapping[str, str]] = {
            "ray.env": {"NODE_IP=10.0.0.10": f"NODE_IP={ip}", "10.0.0.10:6379": self.hosts.address},
            "ray-head.env": {"10.0.0.11:6380": here, "choose-one": PASSWORD},
            "front.env": {
                "postgresql://tenuto:choose-one@10.0.0.11/tenuto": self.database,
                "redis://:choose-one@10.0.0.11:6379/0": self.redis.url,
            },
        }
        return replaced((FILES / name).read_text(), changes[name])


@pytest.fixture(scope="module")
def machines(redis_server: RedisServer, postgres: Postgres) -> Iterator[Machines]:
    # Ray's sockets lie there, whose paths must be short.
    hosts = Hosts(Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")))
    found = Machines(hosts, redis_server, postgres.fresh())
    try:
        for ip in (HEAD, *WORKERS):
            (found.home(ip) / "ray.token").write_text(hosts.token)
            models = [{"id": "two", "replicas": {"min": 2, "max": 2}}]
            write_registry(found.home(ip) / "model_registry.yaml", models)
        found.start("ray-head", HEAD)
        hosts.wait_up(HEAD)
        for ip in WORKERS:
            found.start("ray-worker", ip)
        hosts.wait_up(*WORKERS)
        for ip in WORKERS:
            found.start_front(ip)
        yield found
    finally:
        hosts.close()
        shutil.rmtree(hosts.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def client(
    machines: Machines,
    installed: Installed,
    certificate: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    """Has the proxy's address alone."""
    installed("nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    one, two = map(machines.front, WORKERS)
    upstream = replaced(UPSTREAM, {"10.0.0.12:8000": one, "10.0.0.13:8000": two})
    site = (DEPLOY / "nginx" / "tenuto.conf").read_text()
    # docs/cluster.md does it by sed.
    without, number = re.subn(r"^upstream tenuto \{.*?^\}", "", site, flags=re.M | re.S)
    assert number == 1
    command = nginx_command(folder, certificate, without + upstream, port)
    trusted = ssl.create_default_context(cafile=certificate / "chain.pem")
    with child(command, folder / "log") as process:
        wait_listening(process, port, folder / "log")
        address = f"https://localhost:{port}"
        with httpx.Client(base_url=address, verify=trusted, headers=KEY, timeout=30) as client:
            yield client


def ask(client: httpx.Client, request_id: str, **fields: Any) -> str:
    """The text of a stream that has all its tokens."""
    body = {"model": "two", "prompt": "Hi", "max_tokens": 20, "stream": True, **fields}
    headers = {"x-request-id": request_id}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert (answer.status_code, lines[-1]) == (200, DONE), lines
    return "".join(yaml.safe_load(line)["choices"][0]["text"] for line in lines[:-1])


def replicas_of(client: httpx.Client) -> set[str]:
    """The processes that answer."""
    return {ask(client, f"seed-{seed}", seed=seed).split()[0] for seed in range(20)}


def wait_running(front: str, number: int) -> None:
    began = time.monotonic()
    running = f'tenuto_engine_unfinished_requests{{model="two"}} {number}.0'
    while running not in httpx.get(f"http://{front}/metrics").text:
        assert time.monotonic() - began < READY_S


def front_of(machines: Machines, request_id: str) -> str:
    """The host whose front end had the request, which says so once the answer is out."""
    began = time.monotonic()
    while True:
        found = [ip for ip in machines.fronts if request_id in machines.log(ip).read_text()]
        if found:
            [ip] = found
            return ip
        assert time.monotonic() - began < READY_S


def test_a_stream_is_answered_and_a_client_keeps_its_front_end(
    machines: Machines, client: httpx.Client
) -> None:
    for number in range(6):
        assert ask(client, f"kept-{number}", seed=number)
    assert len({front_of(machines, f"kept-{number}") for number in range(6)}) == 1


def test_a_front_end_dies_and_the_next_request_is_served(
    machines: Machines, client: httpx.Client
) -> None:
    ask(client, "before")
    victim = front_of(machines, "before")
    machines.hosts.kill(machines.front(victim))
    began = time.monotonic()
    ask(client, "after")
    assert time.monotonic() - began < 5
    assert front_of(machines, "after") != victim
    # What `Restart=always` does.
    machines.start_front(victim)


def test_the_head_dies_and_knows_everything_again(machines: Machines, client: httpx.Client) -> None:
    replicas = replicas_of(client)
    machines.hosts.kill(HEAD)
    assert replicas_of(client) <= replicas
    # The other hosts' processes are on this machine, too, and Ray takes them for the head's.
    (machines.home(HEAD) / "ray" / "ray_current_cluster").unlink()
    machines.start("ray-head", HEAD)
    machines.hosts.wait_up(HEAD)
    # A front end that begins now asks the head for what there is.
    ip = WORKERS[0]
    machines.hosts.kill(machines.front(ip))
    machines.start_front(ip)
    assert replicas_of(client) == replicas


def test_a_host_is_stopped_and_no_request_of_its_replicas_fails(
    machines: Machines, client: httpx.Client
) -> None:
    """With no front end on it: requests go to the other host's."""
    before, ip = replicas_of(client), WORKERS[0]
    machines.hosts.kill(machines.front(ip))
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        running = [
            threads.submit(ask, client, f"long-{number}", max_tokens=1500, prompt=f"{number}")
            for number in range(NUM_STREAMS)
        ]
        wait_running(machines.front(WORKERS[1]), NUM_STREAMS)
        stopped = machines.hosts.processes[ip]
        stopped.send_signal(signal.SIGTERM)
        assert {future.result().split()[0] for future in running} == before
        assert stopped.wait(READY_S) == 1
    began, after = time.monotonic(), replicas_of(client)
    while len(after) < 2:
        assert time.monotonic() - began < READY_S, after
        after |= replicas_of(client)
    assert len(after & before) == 1
