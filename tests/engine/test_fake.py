"""The scripted engine: what the other tests rely on."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tenuto.engine.fake import FakeBackend, FakeEngine, FakePrompts
from tenuto.engine.types import (
    Canary,
    ChatPrompt,
    EngineSpec,
    ModelFacts,
    Prompt,
    Sampling,
    Step,
    TextPrompt,
)
from tenuto.errors import BadRequest, EngineLost
from tenuto.generation.fold import Choice, fold

PROMPT = Prompt([1, 2])
PROMPTS = FakePrompts(ModelFacts(max_model_len=8, vocab_size=256))


def says(text: str) -> FakeEngine:
    return FakeEngine(reply=lambda prompt, sampling, index: text)


async def answer(engine: FakeEngine, **fields: Any) -> Choice:
    asked = Sampling(**{"max_tokens": 100, **fields})
    return (await fold(engine.generate(PROMPT, asked, "a"))).choices[0]


async def steps(engine: FakeEngine, **fields: Any) -> list[Step]:
    asked = Sampling(**{"max_tokens": 100, "stream": True, **fields})
    return [step async for step in engine.generate(PROMPT, asked, "a")]


@pytest.mark.parametrize(
    ("fields", "text", "finish", "stop"),
    [
        ({}, "abc abd", "stop", None),
        ({"max_tokens": 7}, "abc abd", "stop", None),
        ({"max_tokens": 6}, "abc ab", "length", None),
        ({"stop": ("bd", "c")}, "ab", "stop", "c"),
        ({"stop": ("x",)}, "abc abd", "stop", None),
        ({"detokenize": False}, "", "stop", None),
    ],
)
async def test_answers(fields: dict[str, Any], text: str, finish: str, stop: str | None) -> None:
    choice = await answer(says("abc abd"), **fields)
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (text, finish, stop)


async def test_streams_step_by_token_and_candidate() -> None:
    made = await steps(says("ab"), n=2)
    assert [(d.index, d.text, d.finish_reason) for step in made for d in step.deltas] == [
        (0, "a", None),
        (1, "a", None),
        (0, "b", "stop"),
        (1, "b", "stop"),
    ]


async def test_an_empty_answer_finishes() -> None:
    (step,) = await steps(says(""))
    assert step.deltas[0].finish_reason == "stop"
    assert list(step.deltas[0].token_ids) == []


async def test_log_probabilities() -> None:
    choice = await answer(says("ab"), logprobs=2)
    assert choice.logprobs is not None
    assert [entry.token for entry in choice.logprobs] == ["a", "b"]
    assert [top.token_id for top in choice.logprobs[0].top] == [0, 1]
    assert choice.cumulative_logprob < 0
    assert (await answer(says("ab"))).logprobs is None


async def test_candidates_are_likely_in_another_order() -> None:
    folded = await fold(FakeEngine().generate(PROMPT, Sampling(7, n=4, logprobs=0), "a"))
    likely = sorted(folded.choices, key=lambda i: -folded.choices[i].cumulative_logprob)
    assert likely != [0, 1, 2, 3]


async def test_held_back_until_told() -> None:
    engine = says("a")
    engine.go.clear()
    asking = asyncio.create_task(answer(engine))
    await engine.started.wait()
    assert engine.stats().unfinished_requests == 1
    assert not engine.idle.is_set()
    engine.go.set()
    assert (await asking).text == "a"
    assert engine.idle.is_set()


async def test_closing_ends_the_request() -> None:
    engine = says("abc")
    asked = Sampling(100, n=3, stream=True)
    async with aclosing(engine.generate(PROMPT, asked, "a")) as running:
        await anext(running)
        assert engine.stats().unfinished_requests == 3
    assert engine.stats().unfinished_requests == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_lost_under_its_requests(stream: bool) -> None:
    engine = says("abc")
    engine.go.clear()
    asking = asyncio.create_task(answer(engine, stream=stream))
    await engine.started.wait()
    await engine.close(0)
    with pytest.raises(EngineLost):
        await asking
    await engine.wait_lost()


async def test_an_embedding_is_a_request_too() -> None:
    engine = says("")
    engine.go.clear()
    asking = asyncio.create_task(engine.embed(PROMPT, 3, "a"))
    await engine.started.wait()
    assert engine.stats().unfinished_requests == 1
    engine.go.set()
    assert await asking == [1, 0.25, -0.25]
    assert engine.stats().unfinished_requests == 0


async def test_sleeps_and_wakes_as_told() -> None:
    engine = FakeEngine(can_sleep=True)
    before = await engine.check()
    await engine.sleep(1)
    await engine.wake()
    assert before.agrees(await engine.check())
    await engine.sleep(2)
    assert (engine.asleep, engine.slept) == (2, [1, 2])
    engine.canary = Canary((9,))
    assert not before.agrees(await engine.check())
    assert engine.stats().unfinished_requests == 0


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("asked", [True, False])
async def test_can_sleep_where_it_was_asked_for(able: bool, asked: bool) -> None:
    spec = EngineSpec("demo", Path(), sleep=asked)
    assert (await FakeBackend(can_sleep=able).engine(spec)).can_sleep is (able and asked)


async def test_prompts() -> None:
    chat = await PROMPTS.chat(ChatPrompt([{"role": "u", "content": "a"}], False))
    assert chat == Prompt(list(b"<u>a"), "<u>a")
    assert await PROMPTS.text(TextPrompt("a")) == Prompt([97], "a")
    assert await PROMPTS.text(TextPrompt([97])) == Prompt([97], None)
    assert await PROMPTS.token_strings([97]) == ["a"]


@pytest.mark.parametrize("length", [8, 9])
async def test_prompts_are_bounded_by_the_context(length: int) -> None:
    prompt = TextPrompt("x" * length)
    assert len((await PROMPTS.text(prompt, bounded=False)).token_ids) == length
    if length == 8:
        assert len((await PROMPTS.text(prompt)).token_ids) == 8
        return
    with pytest.raises(BadRequest) as caught:
        await PROMPTS.text(prompt)
    assert caught.value.param == "prompt"


async def test_tokens_beyond_the_vocabulary() -> None:
    with pytest.raises(BadRequest) as caught:
        await PROMPTS.text(TextPrompt([256]))
    assert caught.value.param == "prompt"
