"""What is asked of the servers. Every answer has as many tokens as it may."""

from collections.abc import Mapping
from dataclasses import replace

from scripts.benchmarks.peers import MODEL
from scripts.benchmarks.rows import LITELLM, SATURATION, SHORT, STREAMS, TTFT
from tenuto.bench.load import Load

SMALLER = 16
# Where three would fight for two cores, what they get is chance: the generator has one for itself.
APART = {SATURATION}
# LiteLLM takes as long for one as vLLM for a dozen.
SLOWER = {LITELLM: 4}


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
    STREAMS: _chats(32, 128, 128),
    SATURATION: _chats(128, 384, 128),
    SHORT: _chats(8, 400, 8, stream=False),
    TTFT.format(1): _chats(1, 100, 16),
    TTFT.format(8): _chats(8, 400, 16),
    # Bursts: all begin, and thus end, at a time.
    TTFT.format(32): _chats(32, 32 * 20, 16),
    TTFT.format(128): _chats(128, 128 * 8, 16),
}
# With a seed of its own no load has another's prompts, which would be in the prefix cache.
LOADS: Mapping[str, Load] = {
    name: replace(load, seed=seed) for seed, (name, load) in enumerate(_LOADS.items())
}


def sized(load: Load, subject: str, is_small: bool) -> Load:
    assert load.requests is not None
    requests = load.requests // SLOWER.get(subject, 1) // (SMALLER if is_small else 1)
    return replace(load, requests=max(load.streams, requests))
