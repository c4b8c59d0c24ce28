"""A whole run: every target once before it counts, then round by round in turn."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from tenuto.bench.client import Address, Answer
from tenuto.bench.figures import cost_figures, figures_of, over_rounds, ratios
from tenuto.bench.load import Load, ask_all
from tenuto.bench.processes import cost_of


@dataclass
class Target:
    """`rounds`: what was measured so far; the last is in part if the run was cancelled in it."""

    name: str
    address: Address
    pids: list[int] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)


async def run(targets: list[Target], load: Load, on_progress: Callable[[float, str], None]) -> None:
    """`on_progress` gets the rounds that are done, of all targets together, and what is done now.
    Errors: ConnectionError if a target answers not a single request of its warm-up."""
    warm_up = replace(load, requests=load.warmup, duration=None, rate=None)
    for target in targets if load.warmup else ():
        on_progress(0, f"{target.name}: warm-up")
        answers = list[Answer]()
        await ask_all(target.address, warm_up, -1, answers.append)
        if all(answer.error for answer in answers):
            said = f"{answers[0].error} {answers[0].detail!r}"
            raise ConnectionError(f"{target.name} answers nothing: {said}")
    for number in range(load.rounds * len(targets)):
        turn, place = divmod(number, len(targets))
        await _round(targets[place], load, turn, number, on_progress)


async def _round(
    target: Target, load: Load, turn: int, number: int, on_progress: Callable[[float, str], None]
) -> None:
    answers, is_whole = list[Answer](), False

    def on_answer(answer: Answer) -> None:
        answers.append(answer)
        elapsed_s = answer.ended - answers[0].due
        share = max(len(answers) / (load.requests or inf), elapsed_s / (load.duration or inf))
        on_progress(number + min(1, share), f"{target.name}: {len(answers)} answers")

    before, own_s = cost_of(target.pids), time.process_time()
    try:
        await ask_all(target.address, load, turn, on_answer)
        is_whole = True
    finally:
        own_s, after = time.process_time() - own_s, cost_of(target.pids)
        figures = figures_of(answers, load)
        if target.pids and before and after:
            figures |= cost_figures(figures, after[0] - before[0], after[1])
        target.rounds.append(figures | {"generator_cpu_s": own_s, "is_whole": is_whole})


def document(targets: list[Target], load: Load, ended: str) -> dict[str, Any]:
    """Everything that was measured. Another meaning of a name needs another version."""
    first, *others = targets
    rows = {
        t.name: {"url": t.address.url, "over_rounds": over_rounds(t.rounds), "rounds": t.rounds}
        for t in targets
    }
    pairs = {f"{first.name}/{t.name}": ratios(first.rounds, t.rounds) for t in others}
    about = {"tenuto_bench": 1, "ended": ended, "load": asdict(load)}
    return about | {"targets": rows, "ratios": pairs}
