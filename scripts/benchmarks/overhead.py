"""What metrics, keys, limits and usage cost a request, as a share of what a whole request costs.

Three servers take turns: the scripted one with all of these, the same with none, and `tenuto serve`
with the demo model. `share` is the first less the second, of the third; `share_of_front` is of the
second, which has no engine to pay for: an upper bound. Chats are short, half of them streamed.

python -m scripts.benchmarks.overhead [--seconds S]
"""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from scripts.benchmarks import peers
from scripts.benchmarks.asking import answers_of, as_command
from scripts.benchmarks.scripted_server import CHECKPOINT, MODEL, scripted_server
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cpu_s

ROUTE = "chat/completions"
STREAMS, TOKENS = 8, 8
REQUESTS, REAL_REQUESTS, MIN_ROUNDS = 400, 100, 3
# Usage is written that much later at most.
WRITTEN_S = 0.6


def measured(seconds: float) -> dict[str, float]:
    with (
        TemporaryDirectory() as folder,
        peers.Peers(Path(folder), CHECKPOINT) as started,
        scripted_server() as full,
        scripted_server(bare=True) as bare,
    ):
        real = started.tenuto()
        real_address = Address(real.url, ROUTE, peers.KEY)
        rounds, ended = list[tuple[float, float, float]](), time.monotonic() + seconds
        while time.monotonic() < ended or len(rounds) < MIN_ROUNDS:
            costs = (
                _cost_us(full.pid, full.address(), MODEL, REQUESTS),
                _cost_us(bare.pid, bare.address(), MODEL, REQUESTS),
                _cost_us(real.pids[0], real_address, peers.MODEL, REAL_REQUESTS),
            )
            rounds.append(costs)
    return {
        "share": median((full_us - bare_us) / real_us for full_us, bare_us, real_us in rounds),
        "share_of_front": median(full_us / bare_us - 1 for full_us, bare_us, _ in rounds),
        "us_per_request": median(full_us - bare_us for full_us, bare_us, _ in rounds),
        "us_of_a_whole_request": median(real_us for _, _, real_us in rounds),
    }


def _cost_us(pid: int, address: Address, model: str, requests: int) -> float:
    """Processor time of one request, all threads together."""
    began_s = cpu_s(pid)
    for stream in (True, False):
        load = Load(
            model=model,
            stream=stream,
            streams=STREAMS,
            requests=requests,
            max_tokens=TOKENS,
            body={"ignore_eos": True},
        )
        _ask(address, load)
    time.sleep(WRITTEN_S)
    return (cpu_s(pid) - began_s) / requests / 2 * 1e6


def _ask(address: Address, load: Load) -> None:
    assert not [answer.error for answer in answers_of(address, load) if answer.error]


if __name__ == "__main__":
    as_command(measured, __doc__)
