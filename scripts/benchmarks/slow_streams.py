"""2,000 streams at once of one token a second each: what they cost the server that holds them.

python -m scripts.benchmarks.slow_streams [--seconds S] [--streams N]
"""

import argparse
import asyncio
import json
import time
from dataclasses import replace

import uvloop

from scripts.benchmarks.processes import rss_kib
from scripts.benchmarks.scripted_server import MODEL, Scripted, scripted_server
from tenuto.bench.client import Answer
from tenuto.bench.figures import figures_of
from tenuto.bench.load import Load, ask_all
from tenuto.bench.processes import cpu_s

STREAMS, INTERVAL_S = 2000, 1.0
# Few, since what the server keeps of theirs for the next would hide what those take.
WARM_UP_STREAMS = 50
# So long the streams take to begin, and have before they end.
BEGIN_S, MARGIN_S = 10, 5


def measured(seconds: float, streams: int = STREAMS) -> dict[str, float]:
    with scripted_server(INTERVAL_S) as server:
        return uvloop.run(_measure(server, seconds, streams))


async def _measure(server: Scripted, seconds: float, streams: int) -> dict[str, float]:
    tokens = int((BEGIN_S + seconds + MARGIN_S) / INTERVAL_S)
    load = Load(model=MODEL, streams=streams, requests=streams, max_tokens=tokens, timeout=600)
    warm_up = replace(load, streams=WARM_UP_STREAMS, requests=WARM_UP_STREAMS, max_tokens=3)
    await ask_all(server.address(), warm_up, -1, lambda answer: None)
    before_kib, answers = rss_kib(server.pid), list[Answer]()
    asking = asyncio.create_task(ask_all(server.address(), load, 0, answers.append))
    await asyncio.sleep(BEGIN_S)
    began, began_cpu_s = time.monotonic(), cpu_s(server.pid)
    await asyncio.sleep(seconds)
    ended, taken_s = time.monotonic(), cpu_s(server.pid) - began_cpu_s
    held_kib = rss_kib(server.pid) - before_kib
    await asking
    _judge(answers, streams, began, ended)
    return {
        "cores": taken_s / (ended - began),
        "kib_per_stream": held_kib / streams,
        "itl_ms_p99": figures_of(answers, load)["itl_ms_p99"],
    }


def _judge(answers: list[Answer], streams: int, began: float, ended: float) -> None:
    """All of them whole, and all at once while it was measured."""
    assert len(answers) == streams
    assert not [answer.error for answer in answers if answer.error]
    assert max(answer.texts[0] for answer in answers) < began
    assert min(answer.texts[-1] for answer in answers) > ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--streams", type=int, default=STREAMS)
    given = parser.parse_args()
    print(json.dumps(measured(given.seconds, given.streams)))


if __name__ == "__main__":
    main()
