"""What a cluster costs and gives, on scripted replicas, whose time is a timer.

A front end with eight replicas on two hosts beside one server without a cluster, in turns: the
processor time of a token in their processes, with many streams and with few. That server has the
same scripted engine, whose streams step together, where the replicas come one by one; another has
real vLLM with the demo model, as single machines do. One host beside two: tokens a second, when
each replica has all that it takes.

python -m scripts.benchmarks.cluster [--seconds S]
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import yaml

from scripts.benchmarks import peers
from scripts.benchmarks.asking import answers_of, as_command
from scripts.benchmarks.hosts import WORKERS, ray_hosts
from scripts.benchmarks.scripted_replicas import INTERVAL
from scripts.benchmarks.scripted_server import CHECKPOINT, logged
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cpu_s

# Of a step of the one-layer model that the other benchmarks have.
INTERVAL_S = 0.01
TOKENS, NUM_REPLICAS, MIN_ROUNDS = 128, 8, 3
MANY, FEW, TURNS = 128, 32, 3
# Replicas and requests of each: half as many again wait in it.
REPLICAS = {"many": (NUM_REPLICAS, MANY // NUM_REPLICAS), "one": (1, 8), "two": (2, 8)}
READY_S = 90.0


def measured(seconds: float) -> dict[str, float]:
    costs: dict[int, list[tuple[float, ...]]] = {MANY: [], FEW: []}
    rates, ended = list[tuple[float, float]](), time.monotonic() + seconds
    with _servers() as (single, front), _real() as real:
        asked = (front, "many"), (single, "many"), (real, peers.MODEL)
        while time.monotonic() < ended or len(rates) < MIN_ROUNDS:
            for streams, found in costs.items():
                found.append(tuple(server.cost_us(model, streams) for server, model in asked))
            rates.append((front.tokens_per_s("one"), front.tokens_per_s("two")))
    return {
        **_costs(costs[MANY], MANY),
        **_costs(costs[FEW], FEW),
        "tokens_per_s_of_two_hosts": median(two for _, two in rates),
        "two_hosts_to_twice_one": median(two / one / 2 for one, two in rates),
    }


def _costs(found: list[tuple[float, ...]], streams: int) -> dict[str, float]:
    """Microseconds of a token, and the front end's to the others'."""
    names = "front_end", "scripted_server", "vllm_server"
    us = {name: median(costs) for name, *costs in zip(names, *found, strict=True)}
    to = {name: median(one[0] / one[at] for one in found) for at, name in enumerate(names) if at}
    return {
        **{f"{streams}_streams_us_of_{name}": value for name, value in us.items()},
        **{f"{streams}_streams_cpu_to_{name}": value for name, value in to.items()},
    }


class _Server:
    def __init__(self, pid: int, url: str, key: str | None = None) -> None:
        self._pid, self._address = pid, Address(url, "chat/completions", key)

    def cost_us(self, model: str, streams: int) -> float:
        """Processor time of a token, all threads together."""
        requests, body = TURNS * streams, {"ignore_eos": True}
        began_s = cpu_s(self._pid)
        self._ask(
            Load(model=model, streams=streams, requests=requests, max_tokens=TOKENS, body=body)
        )
        return (cpu_s(self._pid) - began_s) / (requests * TOKENS) * 1e6

    def tokens_per_s(self, model: str) -> float:
        began, requests = time.monotonic(), TURNS * FEW
        self._ask(Load(model=model, streams=2 * FEW, requests=requests, max_tokens=TOKENS))
        return requests * TOKENS / (time.monotonic() - began)

    def _ask(self, load: Load) -> None:
        errors = [answer.error for answer in answers_of(self._address, load) if answer.error]
        assert not errors, errors[:3]


@contextmanager
def _servers() -> Iterator[tuple[_Server, _Server]]:
    """Without a cluster, and with one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        hosts = stack.enter_context(ray_hosts(dict.fromkeys(WORKERS, 12)))
        registry = folder / "registry.yaml"
        registry.write_text(yaml.safe_dump({"models": _models()}))
        joined = {**hosts.environment, "TENUTO_NODE_IP": WORKERS[0]}
        yield (
            stack.enter_context(_serving(folder / "single", registry, {})),
            stack.enter_context(
                _serving(folder / "front", registry, joined, "--cluster", hosts.address)
            ),
        )


@contextmanager
def _real() -> Iterator[_Server]:
    """One server with vLLM and a model of its own."""
    with TemporaryDirectory() as folder, peers.Peers(Path(folder), CHECKPOINT) as started:
        real = started.tenuto()
        yield _Server(real.pids[0], real.url, peers.KEY)


def _models() -> list[dict[str, object]]:
    return [
        {
            "id": name,
            "source": str(CHECKPOINT),
            "load": "eager",
            "replicas": {"min": count, "max": count, "target_ongoing_requests": target},
        }
        for name, (count, target) in REPLICAS.items()
    ]


@contextmanager
def _serving(
    folder: Path, registry: Path, environment: dict[str, str], *arguments: str
) -> Iterator[_Server]:
    folder.mkdir()
    command = [sys.executable, "-m", "scripts.benchmarks.scripted_replicas", "serve"]
    command += ["--port", "0", "--registry", str(registry), *arguments]
    environment = {
        **os.environ,
        **environment,
        INTERVAL: str(INTERVAL_S),
        "TENUTO_STATE_DIR": str(folder / "state"),
    }
    log = folder / "log"
    with peers.started(command, log, environment) as process:
        url = logged(process, log, r"listening on (\S+)")
        began = time.monotonic()
        while httpx.get(f"{url}/health/readiness").status_code != 200:
            assert time.monotonic() - began < READY_S, log.read_text()
            time.sleep(0.2)
        yield _Server(process.pid, url)


if __name__ == "__main__":
    as_command(measured, __doc__)
