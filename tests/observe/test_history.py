"""The last minutes of each model, on a clock that the test moves."""

from dataclasses import dataclass

import pytest

from tenuto.engine.types import EngineStats
from tenuto.observe.history import INTERVAL_S, SPAN_S, History
from tenuto.observe.metrics import Reading

START = 1_800_000_000.0


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


def reading(tokens: int | None = 0, model: str = "demo") -> Reading:
    engine = None if tokens is None else EngineStats(1, kv_cache_usage=0.5, generated_tokens=tokens)
    return Reading(model, "ready", (), 2, 3, {}, {}, 0, 0, 0, engine)


def test_points() -> None:
    clock = Clock()
    history = History(clock)
    history.sample([reading(100)])
    clock.now += 5
    for number in range(100):
        history.first_token("demo", number / 100)
    history.sample([reading(150)])
    clock.now += 5
    history.sample([reading(None)])
    first, second, third = history.since("demo", 0)
    assert (first.at, second.at) == (START, START + 5)
    assert (second.running_requests, second.waiting_requests) == (2, 3)
    assert second.tokens_per_s == pytest.approx(10)
    assert (second.ttft_p50_s, second.ttft_p99_s) == (0.49, 0.98)
    assert (first.ttft_p50_s, first.ttft_p99_s) == (None, None)
    assert (second.kv_cache_usage, third.kv_cache_usage, third.tokens_per_s) == (0.5, None, 0)
    assert history.since("demo", START + 5) == [third]


def test_a_new_engine_counts_from_nothing() -> None:
    clock = Clock()
    history = History(clock)
    for tokens in (1000, 50):
        history.sample([reading(tokens)])
        clock.now += 5
    assert history.since("demo", 0)[1].tokens_per_s == pytest.approx(10)


def test_no_more_than_a_quarter_of_an_hour_is_kept() -> None:
    clock = Clock()
    history = History(clock)
    for _ in range(1000):
        clock.now += INTERVAL_S
        history.sample([reading()])
    points = history.since("demo", 0)
    assert points[0].at == clock.now - SPAN_S + INTERVAL_S
    assert len(points) == SPAN_S / INTERVAL_S


def test_of_a_model_that_is_gone_nothing_is_kept() -> None:
    history = History(Clock())
    history.sample([reading(), reading(model="other")])
    history.sample([reading()])
    assert history.since("other", 0) == []
    assert len(history.since("demo", 0)) == 2
