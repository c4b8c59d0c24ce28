"""The real application over scripted tokens, in a process of its own: the front, and nothing else.

`scripted_server()` starts one. As a program it serves; on SIGUSR1 it prints how many tasks it has.
"""

import argparse
import asyncio
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.benchmarks.peers import ROOT, started
from tenuto.access.database import open_database
from tenuto.access.guessing import Guesses
from tenuto.access.key_store import KeyStore
from tenuto.access.keys import Keys
from tenuto.access.limits import Limiter
from tenuto.access.new_key import MAX_COUNT, MAX_MONTHLY, NewKey
from tenuto.access.usage import Recorder
from tenuto.api.readings import metrics_of
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.bench.client import Address
from tenuto.cli.serve import with_stored
from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.engine.types import Delta, EngineSpec, FinishReason, Prompt, Sampling, Step
from tenuto.models.pool import Pool
from tenuto.models.registry import load_registry
from tenuto.observe.metrics import Metrics
from tenuto.serving import Server, address, listen
from tenuto.wire.bounds import Bounds

DEMO = ROOT / "server" / "tenuto" / "demo"
CHECKPOINT = DEMO / "checkpoint"
MODEL = "tenuto-demo"
START_S = 30.0
WORD, TOKEN_ID = " word", 1
# Beyond what is ever asked: limits are counted, and refuse nothing.
ALL_LIMITS = NewKey(
    requests_per_minute=MAX_COUNT,
    tokens_per_minute=MAX_COUNT,
    parallel_requests=MAX_COUNT,
    tokens_per_month=MAX_MONTHLY,
)


@dataclass(frozen=True)
class Scripted:
    """A server that runs. `key`: has limits of every kind; None for an open server."""

    process: subprocess.Popen[str]
    url: str
    key: str | None
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def address(self, route: str = "chat/completions") -> Address:
        return Address(self.url, route, self.key)

    def num_tasks(self) -> int:
        """As the process itself counts them."""
        said = self.log.read_text().count("tasks: ")
        self.process.send_signal(signal.SIGUSR1)
        return int(logged(self.process, self.log, r"tasks: (\d+)\n", said))


def logged(process: subprocess.Popen[str], log: Path, pattern: str, number: int = 0) -> str:
    """What a process says there, once it has said it for the `number`-th time, from 0."""
    began = time.monotonic()
    while time.monotonic() < began + START_S and process.poll() is None:
        if len(found := re.findall(pattern, log.read_text())) > number:
            return str(found[number])
        time.sleep(0.02)
    raise RuntimeError(f"it never said {pattern}:\n{log.read_text()[-4000:]}")


@contextmanager
def scripted_server(interval_s: float = 0, *, bare: bool = False) -> Iterator[Scripted]:
    """One token every `interval_s`, or as fast as they are taken. `bare`: it knows no keys, limits,
    usage and metrics."""
    command = [sys.executable, "-m", "scripts.benchmarks.scripted_server"]
    command += ["--interval", str(interval_s)]
    with TemporaryDirectory() as folder:
        state, log = Path(folder) / "state", Path(folder) / "log"
        key = None if bare else _key_in(state)
        command += ["--bare"] if bare else ["--state", str(state)]
        with started(command, log, {}) as process:
            url = logged(process, log, r"listening on (\S+)")
            yield Scripted(process, url, key, log)


def _key_in(state: Path) -> str:
    database = open_database(state)
    _, secret = KeyStore(database).create(ALL_LIMITS)
    database.dispose()
    return secret


@dataclass
class PacedEngine(FakeEngine):
    """Answers each request with as many words as it may have, one choice, whatever is asked. Keeps
    nothing of it, unlike the one of the tests."""

    capacity: int = 1 << 20
    interval_s: float = 0
    word: str = WORD
    began: float = field(default_factory=time.monotonic)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        with self._running(1):
            if not sampling.stream:
                await asyncio.sleep(self.interval_s * sampling.max_tokens)
                yield self._step(sampling.max_tokens, is_last=True)
                return
            for number in range(1, sampling.max_tokens + 1):
                await self._stepped()
                yield self._step(1, is_last=number == sampling.max_tokens)

    async def _stepped(self) -> None:
        """All requests step together, as vLLM's do."""
        if not self.interval_s:
            return await asyncio.sleep(0)
        elapsed_s = time.monotonic() - self.began
        # A timer may end a little early, and the step that it was for has come.
        next_step = round(elapsed_s / self.interval_s) + 1
        await asyncio.sleep(next_step * self.interval_s - elapsed_s)

    def _step(self, num_tokens: int, *, is_last: bool) -> Step:
        finish: FinishReason | None = "length" if is_last else None
        return Step([Delta(0, self.word * num_tokens, [TOKEN_ID] * num_tokens, finish)])


@dataclass
class PacedBackend(FakeBackend):
    interval_s: float = 0
    word: str = WORD

    async def engine(self, spec: EngineSpec) -> FakeEngine:
        return PacedEngine(interval_s=self.interval_s, word=self.word)


class NoMetrics(Metrics):
    """They stay as they are."""

    def answered(self, *args: object) -> None: ...

    def used(self, *args: object) -> None: ...

    def gaps(self, *args: object) -> None: ...


def services_of(interval_s: float, state: Path | None = None) -> Services:
    """Without a `state` of keys: open, and nothing is counted."""
    registry, keys = load_registry(DEMO / "registry.yaml"), Keys()
    pool = Pool(registry, PacedBackend(interval_s=interval_s))
    watcher = with_stored(keys, state) if state else None
    limiter, guesses = Limiter(), Guesses()
    return Services(
        registry=registry,
        pool=pool,
        keys=keys,
        metrics=NoMetrics() if state is None else metrics_of(pool, limiter, guesses),
        limiter=limiter,
        guesses=guesses,
        bounds=Bounds(),
        eager=(MODEL,),
        key_watcher=watcher,
        recorder=Recorder(watcher.store.engine) if watcher is not None else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interval", type=float, default=0, help="seconds between tokens")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--state", type=Path, help="folder of the database with the keys")
    of.add_argument("--bare", action="store_true", help="no keys, limits, usage and metrics")
    given = parser.parse_args()
    # As `tenuto serve` has it: a line for each request is part of its cost.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s")
    services = services_of(given.interval, given.state)
    server = Server(build_app(services), services, drain_s=1)
    listener = listen("127.0.0.1", 0)
    signal.signal(
        signal.SIGUSR1, lambda *_: print(f"tasks: {len(asyncio.all_tasks())}", flush=True)
    )
    print(f"listening on {address(listener)}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
