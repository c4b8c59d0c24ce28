"""What a server holds after very many requests of all kinds: memory, descriptors, threads, tasks.

The scripted server gets most of them, `tenuto serve` with the demo model some. Memory is a slope,
in KiB for 1,000 requests, with its 95 % confidence interval. Samples in a row resemble each other,
which would make that too narrow: the line is put through the means of 20 blocks.

python -m scripts.benchmarks.soak [--requests N] [--real-requests N]
"""

import argparse
import asyncio
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, linear_regression
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import uvloop

from scripts.benchmarks import peers, scripted_server
from scripts.benchmarks.counter import ROUTE, CounterAddress
from scripts.benchmarks.processes import num_descriptors, num_threads, rss_kib
from scripts.benchmarks.scripted_server import CHECKPOINT, Scripted
from tenuto.bench.client import Address, Client

REQUESTS, REAL_REQUESTS = 200_000, 5_000
# Steady, and slower than the servers can: limits remember the requests of a minute, whose number
# would otherwise be the slope. For the same reason the warm-up should last a minute; and 20,000
# requests, with which SQLite has filled its page cache of 2 MiB.
PER_S, REAL_PER_S = 1000, 60
WARM_UP_SHARE = 0.75
BLOCKS = 20
# Student's t with BLOCKS - 2 degrees of freedom.
T_95 = 2.101
STREAMS, TOKENS, MANY_TOKENS = 32, 8, 2000
INTERVAL_S, LEAVE_S, REAL_LEAVE_S = 0.002, 0.02, 0.1
SETTLE_S, SETTLED_S, PATIENCE_S = 1.0, 20.0, 60.0
SAMPLES = 20 * BLOCKS
# Requests so far, and KiB.
Sample = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """A request, and the error that it ends with."""

    route: str
    body: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def content(self, model: str, number: int) -> bytes:
        body = {"model": model, "max_tokens": TOKENS, "ignore_eos": True}
        prompt = f"What is {number}?"
        asked = {"messages": [{"role": "user", "content": prompt}]}
        body |= asked if self.route == CHAT else {"prompt": prompt}
        return msgspec.json.encode({**body, **self.body})


CHAT, TEXT, STREAM, LEFT = "chat/completions", "completions", {"stream": True}, "timeout"
KINDS = (
    Kind(CHAT, STREAM),
    Kind(CHAT),
    Kind(TEXT, STREAM),
    Kind(TEXT),
    Kind(TEXT, STREAM | {"prompt": ["One", "Two"]}),
    Kind(ROUTE),
    Kind(CHAT, {"temperature": -1}, "400"),
    Kind(TEXT, {"model": "unknown"}, "400"),
    Kind(CHAT, STREAM | {"max_tokens": MANY_TOKENS}, LEFT),
    Kind(TEXT, {"max_tokens": MANY_TOKENS}, LEFT),
)


@dataclass(frozen=True)
class Soaked:
    """A server to be asked; `scripted`, where it is one, tells of its tasks."""

    url: str
    key: str | None
    model: str
    pid: int
    per_s: float
    leave_s: float
    scripted: Scripted | None = None

    def client(self, kind: Kind) -> Client:
        address = CounterAddress if kind.route == ROUTE else Address
        patience_s = self.leave_s if kind.error == LEFT else PATIENCE_S
        return Client(address(self.url, kind.route, self.key), patience_s)

    def unfinished(self) -> int:
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        found = re.findall(r"^tenuto_engine_unfinished_requests{.*} (\S+)$", text, re.M)
        return sum(int(float(number)) for number in found)


@dataclass(frozen=True)
class Held:
    """By a server that nobody asks anything."""

    descriptors: int
    threads: int
    tasks: int
    unfinished: int


def soaked(server: Soaked, requests: int) -> dict[str, float]:
    """What was left behind, and the slope after the warm-up."""
    warm_up = int(requests * WARM_UP_SHARE)
    uvloop.run(_ask(server, range(warm_up)))
    before = asdict(_held(server))
    samples = uvloop.run(_ask(server, range(warm_up, requests)))
    after = asdict(_held(server))
    left = {name: after[name] - number for name, number in before.items()}
    return left | {"unfinished": after["unfinished"]} | slope(samples)


async def _ask(server: Soaked, numbers: range) -> list[Sample]:
    waiting, samples, began = iter(numbers), list[Sample](), time.monotonic()
    every = max(1, len(numbers) // SAMPLES)

    async def stream() -> None:
        clients = [server.client(kind) for kind in KINDS]
        for number in waiting:
            await asyncio.sleep(began + (number - numbers[0]) / server.per_s - time.monotonic())
            await _ask_one(server, clients, number)
            if number % every == 0:
                samples.append((number, rss_kib(server.pid)))
        for client in clients:
            client.close()

    await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return samples


async def _ask_one(server: Soaked, clients: Sequence[Client], number: int) -> None:
    kind, client = KINDS[number % len(KINDS)], clients[number % len(KINDS)]
    answer = await client.ask(kind.content(server.model, number), time.monotonic())
    assert answer.error == kind.error, f"{kind}: {answer.error} {answer.detail}"


def _held(server: Soaked) -> Held:
    """Once the last client's leaving is noticed, and what ends by itself has ended."""
    ended = time.monotonic() + SETTLED_S
    while server.unfinished() and time.monotonic() < ended:
        time.sleep(SETTLE_S)
    time.sleep(SETTLE_S)
    tasks = server.scripted.num_tasks() if server.scripted else 0
    pid = server.pid
    return Held(num_descriptors(pid), num_threads(pid), tasks, server.unfinished())


def slope(samples: Iterable[Sample]) -> dict[str, float]:
    """Least squares through the blocks' means."""
    ordered = sorted(samples)
    size = len(ordered) // BLOCKS
    blocks = [ordered[size * number : size * (number + 1)] for number in range(BLOCKS)]
    x = [fmean(done for done, _ in block) / 1000 for block in blocks]
    y = [fmean(kib for _, kib in block) for block in blocks]
    rise, start = linear_regression(x, y)
    rest = sum((kib - start - rise * done) ** 2 for done, kib in zip(x, y, strict=True))
    spread = sum((done - fmean(x)) ** 2 for done in x)
    half = T_95 * math.sqrt(rest / (BLOCKS - 2) / spread)
    names = ("kib_per_1000", "kib_per_1000_low", "kib_per_1000_high")
    return dict(zip(names, (rise, rise - half, rise + half), strict=True))


def soaked_scripted(requests: int) -> dict[str, float]:
    with scripted_server.scripted_server(INTERVAL_S) as server:
        asked = Soaked(
            server.url, server.key, scripted_server.MODEL, server.pid, PER_S, LEAVE_S, server
        )
        return soaked(asked, requests)


def soaked_real(requests: int) -> dict[str, float]:
    with TemporaryDirectory() as folder, peers.Peers(Path(folder), CHECKPOINT) as started:
        server = started.tenuto()
        asked = Soaked(server.url, peers.KEY, peers.MODEL, server.pids[0], REAL_PER_S, REAL_LEAVE_S)
        return soaked(asked, requests)


def measured(seconds: float) -> dict[str, float]:
    return _both(int(seconds / 2 * PER_S), int(seconds / 2 * REAL_PER_S))


def _both(requests: int, real_requests: int) -> dict[str, float]:
    found = {"scripted": soaked_scripted(requests), "real": soaked_real(real_requests)}
    return {
        f"{who}_{name}": value for who, figures in found.items() for name, value in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--real-requests", type=int, default=REAL_REQUESTS)
    given = parser.parse_args()
    print(json.dumps(_both(given.requests, given.real_requests)))


if __name__ == "__main__":
    main()
