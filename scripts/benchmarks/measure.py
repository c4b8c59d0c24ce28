"""Asks every subject in turn, and judges whether what came back is what was asked for."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from scripts.benchmarks import counter, overhead, slow_streams
from scripts.benchmarks.loads import APART, LOADS, sized
from scripts.benchmarks.machine import apart, busy_s, family
from scripts.benchmarks.rows import COUNTER, OVERHEAD, ROWS, SLOW_STREAMS, TENUTO, Figures, Round
from tenuto.bench.client import Answer
from tenuto.bench.figures import figures_of
from tenuto.bench.load import Load
from tenuto.bench.processes import cpu_s

MODULES: Mapping[str, Callable[[float], dict[str, float]]] = {
    COUNTER: counter.measured,
    SLOW_STREAMS: slow_streams.measured,
    OVERHEAD: overhead.measured,
}
# Of a module in a whole run, and in a small one.
MODULE_S = {False: 10.0, True: 1.0}
OnStep = Callable[[str], None]


class Subject(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def pids(self) -> Sequence[int]: ...

    @property
    def leaders(self) -> Sequence[int]: ...

    def ask(self, load: Load, turn: int) -> list[Answer]: ...


class Misanswered(Exception):
    """What came back is not what was asked for: no figure would mean what it says."""


def num_steps(subjects: Sequence[Subject], rounds: int) -> int:
    """With those of the warm-up."""
    asked = sum(len(_asked(name, subjects)) for name in LOADS)
    return asked + rounds * (asked + len(MODULES))


def warmed_up(subjects: Sequence[Subject], on_step: OnStep) -> None:
    _loads(subjects, -1, True, on_step)


def measured(subjects: Sequence[Subject], turn: int, is_small: bool, on_step: OnStep) -> Round:
    found = dict(_loads(subjects, turn, is_small, on_step))
    for name, module in MODULES.items():
        on_step(name)
        found[name, TENUTO] = module(MODULE_S[is_small])
    return found


def _loads(subjects: Sequence[Subject], turn: int, is_small: bool, on_step: OnStep) -> Round:
    found = {}
    for name, load in LOADS.items():
        for subject in _asked(name, subjects):
            on_step(f"{subject.name}: {name}")
            its_load = sized(load, subject.name, is_small)
            with apart(family(subject.leaders)) if name in APART else nullcontext():
                found[name, subject.name] = _load(subject, name, its_load, turn)
    return found


def _asked(load: str, subjects: Sequence[Subject]) -> list[Subject]:
    """Those that a row wants it of."""
    wanted = {name for row in ROWS if row.asked == load for name in row.subjects}
    return [subject for subject in subjects if subject.name in wanted]


def _load(subject: Subject, name: str, load: Load, turn: int) -> Figures:
    taking_part = [os.getpid(), *family(subject.leaders)]
    began_s = time.monotonic(), busy_s(), _cpu_s(taking_part), _cpu_s(subject.pids)
    answers = subject.ask(load, turn)
    ended_s = time.monotonic(), busy_s(), _cpu_s(taking_part), _cpu_s(subject.pids)
    elapsed_s, all_s, ours_s, taken_s = (b - a for a, b in zip(began_s, ended_s, strict=True))
    judge(f"{subject.name}, {name}", load, answers)
    return figures(load, answers, taken_s) | {"others_cores": (all_s - ours_s) / elapsed_s}


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(map(cpu_s, pids))


def judge(what: str, load: Load, answers: Sequence[Answer]) -> None:
    """Errors: `Misanswered`."""
    failed = [f"{answer.error} {answer.detail}" for answer in answers if answer.error]
    tokens, events = sum(a.tokens for a in answers), sum(len(a.texts) for a in answers)
    wanted = (load.requests or 0) * load.max_tokens
    if failed or tokens != wanted:
        told = f"{len(failed)} failed, {tokens} of {wanted} tokens"
        raise Misanswered(f"{what}: {told}: {failed[:1]}")
    # Fewer there may be: what a server has no time to send goes out with the next token.
    if load.stream and not 0 < events <= tokens:
        raise Misanswered(f"{what}: {events} events with text for {tokens} tokens")


def figures(load: Load, answers: Sequence[Answer], taken_s: float) -> dict[str, Any]:
    found = figures_of(answers, load)
    tokens, events = found["completion_tokens"], sum(len(answer.texts) for answer in answers)
    return found | {
        "events_per_token": events / tokens,
        "cpu_ms_per_1000_tokens": taken_s / tokens * 1e6,
        "cpu_ms_per_request": taken_s / len(answers) * 1e3,
    }
