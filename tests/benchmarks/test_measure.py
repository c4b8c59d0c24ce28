"""Who is asked what, in which order, and what counts as an answer."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from scripts.benchmarks.loads import LOADS, sized
from scripts.benchmarks.measure import Misanswered, figures, judge, num_steps, warmed_up
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

    def ask(self, load: Load, turn: int) -> list[Answer]:
        self.cores.append(os.sched_getaffinity(0))
        return [answer(load.max_tokens, int(load.stream)) for _ in range(load.requests or 0)]


def test_whole_answers() -> None:
    judge("a server", LOAD, [answer(), answer(events=1)])
    found = figures(LOAD, [answer(), answer(events=1)], taken_s=0.004)
    assert found["events_per_token"] == 5 / 8
    assert found["cpu_ms_per_1000_tokens"] == pytest.approx(500)
    assert found["cpu_ms_per_request"] == pytest.approx(2)


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


def test_subjects_take_turns_and_are_asked_for_what_a_row_wants() -> None:
    steps: list[str] = []
    subjects = [Scripted(name) for name in (TENUTO, VLLM, ALONE, LITELLM, RUST)]
    warmed_up(subjects, steps.append)
    of_streams = [step.split(": ")[0] for step in steps if step.endswith(f": {STREAMS}")]
    assert of_streams == [TENUTO, VLLM, ALONE, LITELLM, RUST]
    assert [s for s in steps if LITELLM in s] == [f"{LITELLM}: {STREAMS}"]
    assert num_steps(subjects, rounds=0) == len(steps)


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


@pytest.mark.parametrize("name", LOADS)
def test_sizes(name: str) -> None:
    """A small run still fills its streams, and LiteLLM is asked less."""
    load = LOADS[name]
    small, slow = sized(load, TENUTO, True), sized(load, LITELLM, False)
    assert sized(load, TENUTO, False) == load
    assert load.streams <= (small.requests or 0) < (load.requests or 0)
    assert load.streams <= (slow.requests or 0) < (load.requests or 0)
