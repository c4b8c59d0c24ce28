"""What a router that keeps prefix caches warm is worth: hit rate and time to first token.

Conversations with a common system prompt, on scripted replicas of Ray Serve: each reads one prompt
at a time, in a fixed time and some for each token that its cache lacks, and writes its answers
beside each other. The caches hold what all conversations come to once, not once each.

python -m scripts.benchmarks.routing
"""

import asyncio
import json
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.hosts import local_serve
from tenuto.engine.prefixes import prefix_hashes

REPLICAS, ROUNDS = 4, 2
CONVERSATIONS, TURNS, CONCURRENT = 40, 6, 12
SYSTEM_TOKENS, MESSAGE_TOKENS, ANSWER_TOKENS, VOCABULARY = 1000, (20, 300), (30, 120), 100_000
BLOCK_TOKENS, CACHE_TOKENS = 16, 24_000
READ_S, READ_TOKEN_S, WRITE_TOKEN_S = 0.020, 0.0001, 0.003
# Conversations begin within this time.
START_S = 2.0
ROUTERS = {
    "prefix": "tenuto.engine.ray_router:PrefixRouter",
    "power of two": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
}
Tokens = list[int]


class Cache:
    """The blocks of tokens that were used last."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, tokens: Tokens) -> int:
        """Of the beginning; at least one is always read."""
        blocks = _blocks(tokens)
        found = next((i for i, one in enumerate(blocks) if one not in self._blocks), len(blocks))
        return min(found * BLOCK_TOKENS, len(tokens) - 1)

    def keep(self, tokens: Tokens) -> None:
        # A block is of no use without those before it, which go last.
        for block in reversed(_blocks(tokens)):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)


def _blocks(tokens: Tokens) -> list[int]:
    found, chained = [], 0
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        chained = hash((chained, *tokens[end - BLOCK_TOKENS : end]))
        found.append(chained)
    return found


class Scripted:
    """A replica, whose time is a timer."""

    def __init__(self) -> None:
        self._cache = Cache(CACHE_TOKENS // BLOCK_TOKENS)
        self._reading = asyncio.Lock()

    async def __call__(self, hashes: Any, prompt: Tokens, answer: Tokens) -> AsyncIterator[int]:
        """How many tokens of the prompt were cached, when it has been read."""
        async with self._reading:
            cached = self._cache.cached_tokens(prompt)
            self._cache.keep(prompt)
            await asyncio.sleep(READ_S + (len(prompt) - cached) * READ_TOKEN_S)
        yield cached
        await asyncio.sleep(len(answer) * WRITE_TOKEN_S)
        self._cache.keep(prompt + answer)


class Turns:
    """What came of the turns of all conversations."""

    def __init__(self, handle: Any, seed: int) -> None:
        self._handle, self._random = handle, random.Random(seed)
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._system = self._tokens(SYSTEM_TOKENS, SYSTEM_TOKENS)
        self.prompt_tokens = self.cached_tokens = self.known_tokens = 0
        self.ttft_s: list[float] = []

    def _tokens(self, least: int, most: int) -> Tokens:
        count = self._random.randint(least, most)
        return self._random.choices(range(VOCABULARY), k=count)

    async def all(self) -> None:
        # Drawn before anything is asked: each router has the same.
        scripts = [
            [(self._tokens(*MESSAGE_TOKENS), self._tokens(*ANSWER_TOKENS)) for _ in range(TURNS)]
            for _ in range(CONVERSATIONS)
        ]
        await asyncio.gather(*map(self._conversation, scripts))

    async def _conversation(self, script: Sequence[tuple[Tokens, Tokens]]) -> None:
        prompt = self._system
        await asyncio.sleep(self._random.uniform(0, START_S))
        for message, answer in script:
            self.known_tokens += len(prompt)
            prompt = prompt + message
            async with self._slots:
                await self._turn(prompt, answer)
            prompt = prompt + answer

    async def _turn(self, prompt: Tokens, answer: Tokens) -> None:
        began = time.monotonic()
        stream = self._handle.remote(prefix_hashes(prompt), prompt, answer)
        async for cached in stream:
            self.ttft_s.append(time.monotonic() - began)
            self.cached_tokens += cached
            self.prompt_tokens += len(prompt)


def measured() -> dict[str, dict[str, float]]:
    """By router."""
    handles = {name: _deployed(name.replace(" ", "-"), path) for name, path in ROUTERS.items()}
    found: dict[str, list[Turns]] = {name: [] for name in ROUTERS}
    for number in range(ROUNDS):
        for name, handle in handles.items():
            turns = Turns(handle, seed=number)
            asyncio.run(turns.all())
            found[name].append(turns)
    return {name: _figures(rounds) for name, rounds in found.items()}


def _deployed(name: str, router: str) -> Any:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    deployment = serve.deployment(
        num_replicas=REPLICAS,
        max_ongoing_requests=CONCURRENT,
        ray_actor_options={"num_cpus": 0},
        request_router_config=RequestRouterConfig(request_router_class=router),
    )(Scripted)
    handle = serve.run(deployment.bind(), name=name, route_prefix=None)
    return handle.options(stream=True, _by_reference=False)


def _figures(rounds: Sequence[Turns]) -> dict[str, float]:
    prompt_tokens = sum(turns.prompt_tokens for turns in rounds)
    ttft_ms = [seconds * 1000 for turns in rounds for seconds in turns.ttft_s]
    return {
        "requests": len(ttft_ms),
        "hit_rate": sum(turns.cached_tokens for turns in rounds) / prompt_tokens,
        "best_hit_rate": sum(turns.known_tokens for turns in rounds) / prompt_tokens,
        "ttft_ms_p50": median(ttft_ms),
        "ttft_ms_p99": quantiles(ttft_ms, n=100)[98],
    }


def _table(found: dict[str, dict[str, float]]) -> Table:
    table = Table("router", "hit rate", "at best", "TTFT ms p50", "p99", box=None, padding=(0, 2))
    for name, figures in found.items():
        hits = [f"{figures[rate]:.1%}" for rate in ("hit_rate", "best_hit_rate")]
        times = [f"{figures[f'ttft_ms_{p}']:.0f}" for p in ("p50", "p99")]
        table.add_row(name, *hits, *times)
    return table


def main() -> None:
    with local_serve(num_cpus=REPLICAS):
        found = measured()
    Console().print(_table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
