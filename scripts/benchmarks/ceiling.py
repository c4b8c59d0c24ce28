"""How many tokens a second one process serves, when no engine sets a limit.

Tokens are scripted, and come as fast as they are taken, each in an event of its own. The generator
is this process: not the limit, as long as it is idle for a part of the time.

python -m scripts.benchmarks.ceiling [--seconds S]
"""

import time

from scripts.benchmarks.asking import answers_of, as_command
from scripts.benchmarks.scripted_server import MODEL, Scripted, scripted_server
from tenuto.bench.figures import figures_of
from tenuto.bench.load import Load
from tenuto.bench.processes import cpu_s

STREAMS, TOKENS, WARM_UP_S = (16, 128, 512), 256, 1.0
# Above, the generator would be what is measured.
MAX_GENERATOR_CORES = 0.95


def measured(seconds: float) -> dict[str, float]:
    """Of the number of streams at which it is the most."""
    with scripted_server() as server:
        _measure(server, STREAMS[0], WARM_UP_S)
        tried = [_measure(server, streams, seconds / len(STREAMS)) for streams in STREAMS]
    best = max(tried, key=lambda found: found["tokens_per_s"])
    assert best["generator_cores"] < MAX_GENERATOR_CORES, best
    return best


def _measure(server: Scripted, streams: int, seconds: float) -> dict[str, float]:
    load = Load(model=MODEL, streams=streams, duration=seconds, max_tokens=TOKENS)
    began, own_s, its_s = time.monotonic(), time.process_time(), cpu_s(server.pid)
    answers = answers_of(server.address(), load)
    elapsed_s = time.monotonic() - began
    own_s, its_s = time.process_time() - own_s, cpu_s(server.pid) - its_s
    figures = figures_of(answers, load)
    assert not figures["failed"], figures["first_error"]
    assert sum(len(answer.texts) for answer in answers) == figures["completion_tokens"]
    return {
        "tokens_per_s": figures["tokens_per_s"],
        "us_per_token": its_s / figures["completion_tokens"] * 1e6,
        "streams": streams,
        "server_cores": its_s / elapsed_s,
        "generator_cores": own_s / elapsed_s,
    }


if __name__ == "__main__":
    as_command(measured, __doc__, seconds=15)
