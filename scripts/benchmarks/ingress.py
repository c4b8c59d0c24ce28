"""What a token costs in a front end that Ray Serve runs as an ingress, behind its own proxy.

The same application over the same scripted engine, in turns: as a plain process, and as a replica
of Ray Serve's. What a request then costs its replicas of models is the same for both.

python -m scripts.benchmarks.ingress [--seconds S]
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from fastapi import FastAPI
from ray import serve

from scripts.benchmarks.asking import answers_of, as_command
from scripts.benchmarks.cluster import FEW, INTERVAL_S, TOKENS, TURNS
from scripts.benchmarks.hosts import local_serve
from scripts.benchmarks.peers import free_port
from scripts.benchmarks.processes import command, descendants
from scripts.benchmarks.scripted_server import MODEL, scripted_server, services_of
from tenuto.app import build_app
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cpu_s

ROUTE = "chat/completions"
MIN_ROUNDS = 3
PARTS = (b"ray::ProxyActor", b"ray::ServeReplica")


def measured(seconds: float) -> dict[str, float]:
    with scripted_server(INTERVAL_S, bare=True) as plain, _ingress() as (url, pids):
        costs, ended = list[tuple[float, float]](), time.monotonic() + seconds
        while time.monotonic() < ended or len(costs) < MIN_ROUNDS:
            costs.append(
                (_cost_us([plain.pid], plain.address()), _cost_us(pids, Address(url, ROUTE, None)))
            )
    return {
        "us_per_token_of_a_process": median(process for process, _ in costs),
        "us_per_token_of_an_ingress": median(ingress for _, ingress in costs),
        "ratio": median(ingress / process for process, ingress in costs),
    }


def application() -> FastAPI:
    return build_app(services_of(INTERVAL_S))


@contextmanager
def _ingress() -> Iterator[tuple[str, list[int]]]:
    """Its address, and the processes that a token passes."""
    port = free_port()
    with local_serve(port=port):
        deployment = serve.deployment(serve.ingress(application)()).options(
            max_ongoing_requests=10 * FEW, ray_actor_options={"num_cpus": 0}
        )
        serve.run(deployment.bind())
        below = descendants(os.getpid())
        yield (
            f"http://127.0.0.1:{port}",
            [pid for pid in below if any(part in command(pid) for part in PARTS)],
        )


def _cost_us(pids: list[int], address: Address) -> float:
    began_s = sum(map(cpu_s, pids))
    load = Load(model=MODEL, streams=FEW, requests=TURNS * FEW, max_tokens=TOKENS)
    errors = [answer.error for answer in answers_of(address, load) if answer.error]
    assert not errors, errors[:3]
    return (sum(map(cpu_s, pids)) - began_s) / (TURNS * FEW * TOKENS) * 1e6


if __name__ == "__main__":
    as_command(measured, __doc__)
