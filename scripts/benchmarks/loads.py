"""What is asked of a server when it is its turn. Every answer has as many tokens as it may."""

from collections.abc import Mapping
from dataclasses import replace

from scripts.benchmarks.peers import MODEL
from scripts.benchmarks.rows import SATURATION, SHORT, STREAMS, TTFT
from tenuto.bench.load import Load

SMALLER = 4
# Where three would fight for two cores, what they get is chance: the generator has one for itself.
APART = {SATURATION}


def _chats(streams: int, requests: int, tokens: int, stream: bool = True) -> Load:
    body = {"top_k": 40, "repetition_penalty": 1.2, "temperature": 0.7}
    return Load(
        model=MODEL,
        streams=streams,
        requests=requests,
        max_tokens=tokens,
        stream=stream,
        body=body | {"ignore_eos": True, "min_tokens": tokens},
    )


_LOADS = {
    STREAMS: _chats(32, 32, 128),
    SATURATION: _chats(128, 256, 128),
    SHORT: _chats(8, 96, 8, stream=False),
    TTFT.format(1): _chats(1, 24, 16),
    TTFT.format(8): _chats(8, 96, 16),
    # Bursts: all begin, and thus end, at a time.
    TTFT.format(32): _chats(32, 32 * 5, 16),
    TTFT.format(128): _chats(128, 128 * 2, 16),
}
# With a seed of its own no load has another's prompts, which would be in the prefix cache.
LOADS: Mapping[str, Load] = {
    name: replace(load, seed=seed) for seed, (name, load) in enumerate(_LOADS.items())
}


def smaller(load: Load) -> Load:
    assert load.requests is not None
    return replace(load, requests=max(load.streams, load.requests // SMALLER))
