"""Deltas folded to choices, and the choice among candidates."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from tenuto.engine.fake import FakeEngine
from tenuto.engine.types import Delta, Prompt, Sampling, Step
from tenuto.generation.fold import Choice, Folded, best, chosen, fold


def candidate(index: int, logprob: float) -> Choice:
    return Choice(index, text=f"c{index}", cumulative_logprob=logprob)


async def steps(*made: Step) -> AsyncIterator[Step]:
    for step in made:
        yield step


@pytest.mark.parametrize(
    ("logprobs", "n", "expected"),
    [
        ([-3.0, -1.0, -2.0], 1, ["c1"]),
        ([-3.0, -1.0, -2.0], 3, ["c1", "c2", "c0"]),
        ([-1.0, -1.0, -0.5], 2, ["c2", "c0"]),
        ([-1.0, -1.0, -1.0], 3, ["c0", "c1", "c2"]),
    ],
)
def test_best(logprobs: list[float], n: int, expected: list[str]) -> None:
    ranked = best([candidate(i, logprob) for i, logprob in enumerate(logprobs)], n)
    assert [choice.text for choice in ranked] == expected
    assert [choice.index for choice in ranked] == list(range(n))


def test_chosen_ranks_each_prompt_alone() -> None:
    logprobs = [-3.0, -1.0, -0.1, -0.2, -9.0, -8.0]
    folded = Folded({i: candidate(i, logprob) for i, logprob in enumerate(logprobs)})
    picked = chosen(folded, num_prompts=2, candidates=3, n=2)
    assert [choice.text for choice in picked] == ["c2", "c1", "c3", "c5"]
    assert [choice.index for choice in picked] == [0, 1, 2, 3]


def test_chosen_keeps_the_order_when_nothing_is_ranked() -> None:
    folded = Folded({1: candidate(1, -1.0), 0: candidate(0, -2.0)})
    picked = chosen(folded, num_prompts=1, candidates=2, n=2)
    assert [choice.text for choice in picked] == ["c0", "c1"]


async def test_fold_gathers_what_comes_in_pieces() -> None:
    folded = await fold(
        steps(
            Step([Delta(0, "a", [1], cumulative_logprob=-1.0)], 7, 0, [None]),
            Step([Delta(1, "x", [9])], 5, 1),
            Step([Delta(0, "b", [2], "stop", "!", cumulative_logprob=-3.0)], 7, 0),
        )
    )
    assert folded.choices[0] == Choice(0, "ab", [1, 2], None, -3.0, "stop", "!")
    assert folded.choices[1].finish_reason is None
    assert folded.cached_tokens == {0: 7, 1: 5}
    assert folded.prompt_logprobs == {0: [None]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"max_tokens": 5},
        {"max_tokens": 4, "n": 2, "logprobs": 2},
        {"stop": ("ö", "!")},
        {"detokenize": False, "logprobs": 0},
    ],
)
@pytest.mark.parametrize("text", ["Grüße, 世界!", "", "plain"])
async def test_folded_deltas_equal_the_whole_answer(text: str, fields: dict[str, Any]) -> None:
    engine = FakeEngine(reply=lambda prompt, sampling, index: text * (index + 1))
    whole = Sampling(**{"max_tokens": 50, **fields})
    streamed = replace(whole, stream=True)
    prompt = Prompt([1])
    assert await fold(engine.generate(prompt, streamed, "a")) == await fold(
        engine.generate(prompt, whole, "b")
    )
