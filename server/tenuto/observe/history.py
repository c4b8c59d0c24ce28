"""The last 15 minutes of each model, for those who look rather than read."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tenuto.observe.metrics import Reading

INTERVAL_S = 5
SPAN_S = 900
# Of one interval; of more the rest is left out of its percentiles.
MAX_FIRST_TOKENS = 10_000


class Point(NamedTuple):
    """`at` in seconds since the epoch; of its interval the tokens that the engine generated, and
    what first tokens took, where there were any."""

    at: float
    running_requests: int
    waiting_requests: int
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    kv_cache_usage: float | None


@dataclass
class _Past:
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=SPAN_S // INTERVAL_S))
    first_tokens_s: list[float] = field(default_factory=list)
    generated_tokens: int = 0


@dataclass
class History:
    """`clock` tells the time of day."""

    clock: Callable[[], float] = time.time
    _models: dict[str, _Past] = field(default_factory=dict)
    _sampled_at: float | None = None

    def first_token(self, model: str, seconds: float) -> None:
        past = self._models.setdefault(model, _Past())
        if len(past.first_tokens_s) < MAX_FIRST_TOKENS:
            past.first_tokens_s.append(seconds)

    def since(self, model: str, at: float) -> list[Point]:
        """Those later than that."""
        past = self._models.get(model)
        return [point for point in past.points if point.at > at] if past else []

    def sample(self, readings: Iterable[Reading]) -> None:
        now = self.clock()
        began_at, self._sampled_at = self._sampled_at, now
        known = {reading.model: reading for reading in readings}
        for gone in self._models.keys() - known.keys():
            del self._models[gone]
        # A clock that was set back tells nothing.
        elapsed_s = now - began_at if began_at is not None and now > began_at else INTERVAL_S
        for model, reading in known.items():
            past = self._models.setdefault(model, _Past())
            past.points.append(_point(past, reading, now, elapsed_s))

    async def run(self, read: Callable[[], Iterable[Reading]]) -> None:
        while True:
            self.sample(read())
            await asyncio.sleep(INTERVAL_S)


def _point(past: _Past, reading: Reading, now: float, elapsed_s: float) -> Point:
    first_tokens_s, past.first_tokens_s = sorted(past.first_tokens_s), []
    engine = reading.engine
    generated = engine.generated_tokens if engine is not None else 0
    # A new engine counts from 0.
    before = past.generated_tokens if past.generated_tokens <= generated else 0
    past.generated_tokens = generated
    return Point(
        at=now,
        running_requests=reading.running_requests,
        waiting_requests=reading.waiting_requests,
        tokens_per_s=(generated - before) / elapsed_s,
        ttft_p50_s=_percentile(first_tokens_s, 50),
        ttft_p99_s=_percentile(first_tokens_s, 99),
        kv_cache_usage=engine.kv_cache_usage if engine is not None else None,
    )


def _percentile(ordered: list[float], percent: int) -> float | None:
    """The nearest rank: a value that did occur."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else None
