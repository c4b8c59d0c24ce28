"""/utils/token_counter beside the library that counts: Hugging Face's tokenizers, in one thread.

python -m scripts.benchmarks.counter [--seconds S]
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import msgspec
from tokenizers import Tokenizer

from scripts.benchmarks.asking import answers_of, as_command
from scripts.benchmarks.peers import KEY, MODEL, Peers, Server
from scripts.benchmarks.scripted_server import CHECKPOINT
from tenuto.bench.client import Address
from tenuto.bench.figures import figures_of
from tenuto.bench.load import WORDS, Load

ROUTE, CONNECTIONS = "utils/token_counter", (4, 8, 16, 32, 64)
ROUNDS, NUM_PROMPTS, NUM_WORDS = 5, 5000, 200


class CounterAddress(Address):
    """The only route that has no /v1 before it."""

    def request(self, content: bytes) -> bytes:
        return super().request(content).replace(b"/v1/", b"/", 1)


@dataclass(frozen=True, kw_only=True)
class CounterLoad(Load):
    """`contents` are made before: here the generator must not be the limit."""

    contents: Sequence[bytes]

    def content(self, turn: int, number: int) -> bytes:
        return self.contents[number % len(self.contents)]


def measured(seconds: float) -> dict[str, float]:
    """Half of the time goes into how many connections give the most."""
    tokenizer, prompts = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")), _prompts()
    contents = [msgspec.json.encode({"model": MODEL, "prompt": prompt}) for prompt in prompts]
    load = CounterLoad(model=MODEL, contents=contents, duration=seconds / 2 / len(CONNECTIONS))
    with TemporaryDirectory() as folder, Peers(Path(folder), CHECKPOINT) as peers:
        server = peers.tenuto()
        _judge(server, tokenizer, prompts[0])
        tried = {n: _served_per_s(server, replace(load, streams=n)) for n in CONNECTIONS}
        load = replace(load, streams=max(tried, key=tried.__getitem__))
        return _compared(server, load, tokenizer, prompts, seconds / 4 / ROUNDS)


def _compared(
    server: Server, load: Load, tokenizer: Tokenizer, prompts: Sequence[str], round_s: float
) -> dict[str, float]:
    served, encoded = list[float](), list[float]()
    for _ in range(ROUNDS):
        served.append(_served_per_s(server, replace(load, duration=round_s)))
        encoded.append(_encoded_per_s(tokenizer, prompts, round_s))
    return {
        "ratio": median(a / b for a, b in zip(served, encoded, strict=True)),
        "requests_per_s": median(served),
        "tokenizers_per_s": median(encoded),
        "connections": load.streams,
    }


def _prompts() -> list[str]:
    random = Random(0)
    return [" ".join(random.choices(WORDS, k=NUM_WORDS)) for _ in range(NUM_PROMPTS)]


def _judge(server: Server, tokenizer: Tokenizer, prompt: str) -> None:
    """Both count the same."""
    body, headers = {"model": MODEL, "prompt": prompt}, {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{server.url}/{ROUTE}", json=body, headers=headers).raise_for_status()
    assert answer.json()["total_tokens"] == len(tokenizer.encode(prompt).ids)


def _served_per_s(server: Server, load: Load) -> float:
    answers = answers_of(CounterAddress(server.url, ROUTE, KEY), load)
    figures = figures_of(answers, load)
    assert not figures["failed"], figures["first_error"]
    return float(figures["requests_per_s"])


def _encoded_per_s(tokenizer: Tokenizer, prompts: Sequence[str], seconds: float) -> float:
    began = time.perf_counter()
    for number, prompt in enumerate(cycle(prompts)):
        tokenizer.encode(prompt)
        if (passed_s := time.perf_counter() - began) >= seconds:
            return (number + 1) / passed_s
    raise AssertionError("there are no prompts")


if __name__ == "__main__":
    as_command(measured, __doc__)
