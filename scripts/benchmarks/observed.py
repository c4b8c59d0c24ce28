"""What metrics and log lines add to a streamed token's processor time, as a share of it.

One server has its turns with and without both, with the load of the row on streamed tokens.

python -m scripts.benchmarks.observed [--seconds S]
"""

import os
import signal
import time
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

from scripts.benchmarks.asking import as_command
from scripts.benchmarks.loads import LOADS
from scripts.benchmarks.one_layer import make_one_layer
from scripts.benchmarks.peers import Peers, Server
from scripts.benchmarks.rows import STREAMS
from tenuto.bench.processes import cpu_s

MIN_ROUNDS = 3


def measured(seconds: float) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        checkpoint = make_one_layer(Path(folder) / "checkpoint")
        with Peers(Path(folder), checkpoint) as peers:
            return _compared(peers.tenuto(is_toggled=True), seconds)


def _compared(server: Server, seconds: float) -> dict[str, float]:
    _cost_us(server, 0)
    rounds, random, ended = list[dict[bool, float]](), Random(0), time.monotonic() + seconds
    is_on = True
    while time.monotonic() < ended or len(rounds) < MIN_ROUNDS:
        found = {}
        for wanted in random.sample((True, False), 2):
            if wanted != is_on:
                os.kill(server.pids[0], signal.SIGUSR1)
                is_on = wanted
            found[wanted] = _cost_us(server, 2 * len(rounds) + wanted + 1)
        rounds.append(found)
    return {
        "growth": median(found[True] / found[False] - 1 for found in rounds),
        "us_per_token": median(found[True] for found in rounds),
        "us_per_token_unobserved": median(found[False] for found in rounds),
    }


def _cost_us(server: Server, turn: int) -> float:
    """Processor time of one token."""
    began_s = sum(map(cpu_s, server.pids))
    answers = server.ask(LOADS[STREAMS], turn)
    taken_s = sum(map(cpu_s, server.pids)) - began_s
    assert not any(answer.error for answer in answers)
    return taken_s / sum(answer.tokens for answer in answers) * 1e6


if __name__ == "__main__":
    as_command(measured, __doc__)
