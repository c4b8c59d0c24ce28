"""The hosts of a Ray cluster as processes of this one, each with an address of the loopback."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks.peers import ROOT, free_port
from scripts.benchmarks.processes import descendants

HEAD = "127.0.0.2"
WORKERS = ("127.0.0.3", "127.0.0.4")
START_S = 60.0


@dataclass
class Hosts:
    """`processes` by address. Only who knows the token may talk to Ray."""

    directory: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
            # Else each processor has a Python process wait for work from the start.
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
        }

    def start(self, ip: str, num_cpus: int) -> None:
        """Returns before it is up."""
        arguments = ["--node-ip-address", ip, "--num-cpus", str(num_cpus), "--block"]
        arguments += ["--object-store-memory", str(100 << 20), "--disable-usage-stats"]
        # Two hosts have two disks.
        arguments += ["--temp-dir", str(self.directory / ip)]
        environment = {**os.environ, **self.environment}
        if ip == HEAD:
            arguments += ["--head", "--port", str(self.port), "--include-dashboard=false"]
        else:
            arguments += ["--address", self.address]
        with (self.directory / f"{ip}.log").open("wb") as log:
            self.processes[ip] = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait_up(self, *ips: str) -> None:
        """Until Ray says so; fails with its words."""
        began = time.monotonic()
        for ip in ips:
            log = self.directory / f"{ip}.log"
            while b"--block" not in log.read_bytes():
                assert self.processes[ip].poll() is None, log.read_text()
                assert time.monotonic() - began < START_S, log.read_text()
                time.sleep(0.05)

    def kill(self, ip: str) -> None:
        """As when its power fails: all that runs there ends at once."""
        process = self.processes.pop(ip)
        below = descendants(process.pid)
        for pid in (process.pid, *below):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def close(self) -> None:
        for ip in list(self.processes):
            self.kill(ip)


@contextmanager
def local_serve(num_cpus: int | None = None, port: int | None = None) -> Iterator[None]:
    """Ray Serve in a Ray of this process's own; with its proxy where a `port` is given."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray import serve

    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    try:
        if port is None:
            serve.start(proxy_location="Disabled")
        else:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def ray_hosts(workers: Mapping[str, int]) -> Iterator[Hosts]:
    """A head that runs no replica, and workers with so many processors each."""
    # Ray's sockets lie there, whose paths must be short.
    directory = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    hosts = Hosts(directory)
    try:
        hosts.start(HEAD, 0)
        hosts.wait_up(HEAD)
        for ip, num_cpus in workers.items():
            hosts.start(ip, num_cpus)
        hosts.wait_up(*workers)
        yield hosts
    finally:
        hosts.close()
        shutil.rmtree(directory, ignore_errors=True)
