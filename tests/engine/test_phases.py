"""Where an engine's start went: the arithmetic, and the steps that are timed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tenuto.engine import phases
from tenuto.engine.phases import STEPS, Phases, time_compilation, time_steps


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(phases, "here", Phases())
    return Clock(monkeypatch)


def test_phases_do_not_overlap(clock: Clock) -> None:
    made = Phases()
    with made.timed("outer"):
        clock.now += 1
        with made.timed("inner"):
            clock.now += 2
            made["said"] = 1.5
        clock.now += 4
    assert made == {"inner": 0.5, "said": 1.5, "outer": 5.0}
    assert list(made) == ["said", "inner", "outer"]


def test_a_phase_may_come_twice(clock: Clock) -> None:
    made = Phases()
    for _ in range(2):
        with made.timed("weights"):
            clock.now += 1
    assert made == {"weights": 2.0}


def test_phases_in_a_line() -> None:
    assert str(Phases(weights=12.34, device=0.049, warm_up=0.05)) == "weights 12.3, warm_up 0.1"


def made_worker(clock: Clock, rank: int) -> object:
    def step(self: object, seconds: float) -> str:
        clock.now += seconds
        return "done"

    worker = type("Worker", (), {**dict.fromkeys(STEPS, step), "rank": rank})
    time_steps(worker)
    return worker()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_worker_says_its_steps(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    said: list[dict[str, float]] = []
    monkeypatch.setattr(phases, "tell", lambda made: said.append(dict(made)))
    worker = made_worker(clock, rank)
    assert [getattr(worker, name)(2.0) for name in STEPS] == ["done"] * len(STEPS)
    assert phases.here == dict.fromkeys(STEPS.values(), 2.0)
    assert len(said) == (len(STEPS) if rank == 0 else 0)
    assert said[-1:] == ([phases.here] if rank == 0 else [])


def test_compilation_is_taken_out_of_the_step_around_it(clock: Clock) -> None:
    class Decorators:
        @staticmethod
        @contextmanager
        def monitor_torch_compile(name: str) -> Iterator[None]:
            clock.now += 1
            yield

    time_compilation(Decorators)
    with phases.here.timed("profiling"), Decorators.monitor_torch_compile("model"):
        clock.now += 2
    assert phases.here == {"compile": 3.0, "profiling": 0.0}


def test_telling_nobody() -> None:
    phases.tell(Phases())
