"""Who is asked what, in which order, and what counts as an answer."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from scripts.benchmarks.loads import LOADS, smaller
from scripts.benchmarks.measure import (
    MODULES,
    TURNS,
    Misanswered,
    Part,
    figures,
    judge,
    num_steps,
    of_loads,
    warmed_up,
)
from scripts.benchmarks.rows import ALONE, LITELLM, RUST, SATURATION, STREAMS, TENUTO, VLLM
from tenuto.bench.client import Answer
from tenuto.bench.load import Load

LOAD = Load(model="m", requests=2, max_tokens=4)


def answer(tokens: int = 4, events: int = 4) -> Answer:
    texts = [1.0 + number for number in range(events)]
    return Answer(due=0, sent=0, ended=10, texts=texts, counted=tokens)


@dataclass
class Scripted:
    """Answers at once, and notes on which cores it was asked from."""

    name: str
    pids: Sequence[int] = (os.getpid(),)
    leaders: Sequence[int] = ()
    cores: list[set[int]] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)

    def ask(self, load: Load, turn: int) -> list[Answer]:
        self.cores.append(os.sched_getaffinity(0))
        self.turns.append((load.seed, turn))
        return [answer(load.max_tokens, int(load.stream)) for _ in range(load.requests or 0)]


def test_figures_are_of_all_turns() -> None:
    parts = [
        Part([answer(), answer(events=1)], elapsed_s=1, taken_s=0.003, others_s=0),
        Part([answer(), answer()], elapsed_s=3, taken_s=0.005, others_s=1),
    ]
    for part in parts:
        judge("a server", LOAD, part.answers)
    found = figures(LOAD, parts)
    assert (found["requests"], found["completion_tokens"]) == (4, 16)
    assert found["events_per_token"] == 13 / 16
    assert found["tokens_per_s"] == 4
    assert found["cpu_ms_per_1000_tokens"] == pytest.approx(500)
    assert found["cpu_ms_per_request"] == pytest.approx(2)
    assert found["others_cores"] == 0.25
    assert found["ttft_ms_p50"] == 1000


def test_a_failed_request_fails_the_run() -> None:
    failed = answer()
    failed.failed("500", "no engine")
    with pytest.raises(Misanswered, match=r"a server: 1 failed, .* no engine"):
        judge("a server", LOAD, [answer(), failed])


@pytest.mark.parametrize(
    "answers",
    [
        [answer()],
        [answer(), answer(tokens=3)],
        [answer(), answer(events=5)],
        [answer(events=0), answer(events=0)],
    ],
    ids=["an answer lacks", "a token lacks", "more events than tokens", "no event"],
)
def test_answers_that_are_not_whole(answers: list[Answer]) -> None:
    with pytest.raises(Misanswered):
        judge("a server", LOAD, answers)


def test_subjects_take_turns() -> None:
    steps: list[str] = []
    subjects = [Scripted(name) for name in (TENUTO, VLLM, ALONE, LITELLM, RUST)]
    found = of_loads(subjects, 0, False, steps.append)
    of_streams = [step.split(": ")[0] for step in steps if step.endswith(f": {STREAMS}")]
    assert of_streams == [TENUTO, VLLM, ALONE, LITELLM, RUST] * TURNS
    assert {step for step in steps if LITELLM in step} == {f"{LITELLM}: {STREAMS}"}
    assert found[STREAMS, VLLM]["requests"] == TURNS * (LOADS[STREAMS].requests or 0)


def test_steps_are_counted() -> None:
    steps: list[str] = []
    subjects = [Scripted(TENUTO), Scripted(VLLM)]
    warmed_up(subjects, steps.append)
    for number in range(2):
        of_loads(subjects, number, False, steps.append)
    assert len(steps) == num_steps(subjects, 2) - 2 * len(MODULES)


def test_no_turn_has_the_number_of_another() -> None:
    """Its prompts would be in the prefix cache."""
    tenuto = Scripted(TENUTO)
    warmed_up([tenuto], list[str]().append)
    for number in range(2):
        of_loads([tenuto], number, False, list[str]().append)
    assert len(tenuto.turns) == len(set(tenuto.turns))


def test_the_generator_has_one_core_at_saturation_alone() -> None:
    steps: list[str] = []
    cores, tenuto = os.sched_getaffinity(0), Scripted(TENUTO)
    warmed_up([tenuto], steps.append)
    pinned = dict(zip(steps, tenuto.cores, strict=True))
    assert len(pinned.pop(f"{TENUTO}: {SATURATION}")) == 1
    assert all(left == cores for left in pinned.values())
    assert os.sched_getaffinity(0) == cores


def test_no_two_loads_have_a_prompt_in_common() -> None:
    prompts = {load.content(0, 0).split(b"messages")[1] for load in LOADS.values()}
    assert len(prompts) == len(LOADS)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_small_run_still_fills_its_streams(load: Load) -> None:
    assert load.streams <= (smaller(load).requests or 0) <= (load.requests or 0)
