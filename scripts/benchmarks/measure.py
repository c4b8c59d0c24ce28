"""Asks every subject in turn, and judges whether what came back is what was asked for."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from scripts.benchmarks import counter, observed, overhead, slow_streams
from scripts.benchmarks.loads import APART, LOADS, smaller
from scripts.benchmarks.machine import apart, busy_s, family
from scripts.benchmarks.rows import (
    COUNTER,
    OBSERVED,
    OVERHEAD,
    ROWS,
    SLOW_STREAMS,
    TENUTO,
    Figures,
    Round,
)
from tenuto.bench.client import Answer
from tenuto.bench.figures import figures_of
from tenuto.bench.load import Load
from tenuto.bench.processes import cpu_s

MODULES: Mapping[str, Callable[[float], dict[str, float]]] = {
    COUNTER: counter.measured,
    SLOW_STREAMS: slow_streams.measured,
    OVERHEAD: overhead.measured,
    OBSERVED: observed.measured,
}
# Of a module in a whole run, and in a small one.
MODULE_S = {False: 10.0, True: 1.0}
# Of each server in a round. A machine's speed changes within seconds: short turns share it.
TURNS = 3
KEPT = (
    "requests",
    "failed",
    "completion_tokens",
    *(f"{time}_ms_{p}" for time in ("ttft", "itl") for p in ("p50", "p99")),
)
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


@dataclass(frozen=True)
class Part:
    """What came of one turn. `taken_s`: processor time of the front; `others_s`: of bystanders."""

    answers: Sequence[Answer]
    elapsed_s: float
    taken_s: float
    others_s: float


def num_steps(subjects: Sequence[Subject], rounds: int) -> int:
    """With those of the warm-up."""
    asked = sum(len(_asked(name, subjects)) for name in LOADS)
    return asked + rounds * (TURNS * asked + len(MODULES))


def warmed_up(subjects: Sequence[Subject], on_step: OnStep) -> None:
    for name, load in LOADS.items():
        _turn(subjects, name, load, -1, on_step)


def of_loads(subjects: Sequence[Subject], number: int, is_small: bool, on_step: OnStep) -> Round:
    """In one round; each has a number of its own."""
    found: dict[tuple[str, str], Figures] = {}
    for name, load in LOADS.items():
        its_load, turns = (smaller(load), 1) if is_small else (load, TURNS)
        first = number * TURNS
        parts = [
            _turn(subjects, name, its_load, turn, on_step) for turn in range(first, first + turns)
        ]
        for subject in parts[0]:
            found[name, subject] = figures(its_load, [part[subject] for part in parts])
    return found


def of_modules(is_small: bool, on_step: OnStep) -> Round:
    found: dict[tuple[str, str], Figures] = {}
    for name, module in MODULES.items():
        on_step(name)
        found[name, TENUTO] = module(MODULE_S[is_small])
    return found


def _turn(
    subjects: Sequence[Subject], name: str, load: Load, number: int, on_step: OnStep
) -> dict[str, Part]:
    """One for each subject, by its name. No prompt comes in two with different numbers."""
    found = {}
    for subject in _asked(name, subjects):
        on_step(f"{subject.name}: {name}")
        with apart(family(subject.leaders)) if name in APART else nullcontext():
            found[subject.name] = _asked_once(subject, load, number)
        judge(f"{subject.name}, {name}", load, found[subject.name].answers)
    return found


def _asked(load: str, subjects: Sequence[Subject]) -> list[Subject]:
    """Those that a row wants it of."""
    wanted = {name for row in ROWS if row.asked == load for name in row.subjects}
    return [subject for subject in subjects if subject.name in wanted]


def _asked_once(subject: Subject, load: Load, number: int) -> Part:
    taking_part = [os.getpid(), *family(subject.leaders)]
    began_s = busy_s(), _cpu_s(taking_part), _cpu_s(subject.pids)
    answers = subject.ask(load, number)
    ended_s = busy_s(), _cpu_s(taking_part), _cpu_s(subject.pids)
    all_s, ours_s, taken_s = (b - a for a, b in zip(began_s, ended_s, strict=True))
    elapsed_s = max(answer.ended for answer in answers) - min(answer.due for answer in answers)
    return Part(answers, elapsed_s, taken_s, others_s=all_s - ours_s)


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


def figures(load: Load, parts: Sequence[Part]) -> dict[str, Any]:
    answers = [answer for part in parts for answer in part.answers]
    # Its rates are over all that time, in which the others had their turns.
    found = figures_of(answers, load)
    step_ms = found["itl_ms_p50"]
    tokens, events = found["completion_tokens"], sum(len(answer.texts) for answer in answers)
    elapsed_s, taken_s = sum(part.elapsed_s for part in parts), sum(part.taken_s for part in parts)
    return {name: found[name] for name in KEPT} | {
        "tokens_per_s": tokens / elapsed_s,
        "events_per_token": events / tokens,
        "cpu_ms_per_1000_tokens": taken_s / tokens * 1e6,
        "cpu_ms_per_request": taken_s / len(answers) * 1e3,
        "others_cores": sum(part.others_s for part in parts) / elapsed_s,
        # The median gap between two events is a step of the engine.
        "itl_p99_steps": found["itl_ms_p99"] / step_ms if step_ms else None,
    }
