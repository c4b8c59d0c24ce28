"""A running generation: primed, merged, and closed in order."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tenuto.engine.fake import FakeEngine
from tenuto.engine.types import Delta, Prompt, Sampling, Step
from tenuto.errors import BadRequest, EngineLost
from tenuto.generation.fold import fold
from tenuto.generation.run import Generation, merged, start
from tests.building import FACTS, plan

PROMPTS = [Prompt([1, 2]), Prompt([3])]


class Released:
    """Notes whether the engine still ran when the lease was released."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.running: list[int] = []

    def __call__(self) -> None:
        self.running.append(self._engine.running)


async def started(
    engine: FakeEngine, prompts: list[Prompt] | None = None, **fields: Any
) -> tuple[Generation, Released]:
    released = Released(engine)
    made = plan("completion", stream=True, **fields)
    generation = await start(engine, prompts or PROMPTS[:1], made, FACTS, "prompt", released)
    return generation, released


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
async def test_closing_aborts_in_the_engine_then_releases_once(prompts: list[Prompt]) -> None:
    engine = FakeEngine()
    generation, released = await started(engine, prompts)
    assert engine.running == len(prompts)
    await generation.aclose()
    await generation.aclose()
    assert released.running == [0]


async def test_a_failing_abort_still_releases() -> None:
    async def source() -> AsyncGenerator[Step, None]:
        try:
            yield Step([])
        finally:
            raise EngineLost

    released = Released(FakeEngine())
    generation = Generation(source(), PROMPTS[:1], released)
    await generation.prime()
    with pytest.raises(EngineLost):
        await generation.aclose()
    assert released.running == [0]


async def test_the_first_step_is_awaited_and_not_lost() -> None:
    engine = FakeEngine(reply=lambda prompt, sampling, index: "abc")
    engine.go.clear()
    starting = asyncio.create_task(started(engine))
    await engine.started.wait()
    await asyncio.sleep(0)
    assert not starting.done()
    engine.go.set()
    generation, _ = await starting
    async with generation:
        folded = await fold(generation)
    assert folded.choices[0].text == "abc"


async def test_failure_before_the_first_step_raises_and_leaves_the_lease() -> None:
    engine = FakeEngine()
    engine.lose()
    released = Released(engine)
    with pytest.raises(EngineLost):
        await start(engine, PROMPTS, plan("completion"), FACTS, "prompt", released)
    assert engine.running == 0
    assert released.running == []


async def test_cancelled_while_it_waits_for_the_first_step() -> None:
    engine = FakeEngine()
    engine.go.clear()
    starting = asyncio.create_task(started(engine, PROMPTS))
    await engine.started.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert engine.running == 0


async def test_nothing_starts_when_one_prompt_of_a_batch_leaves_no_room() -> None:
    engine = FakeEngine()
    with pytest.raises(BadRequest) as caught:
        await started(engine, [Prompt([1]), Prompt([1] * FACTS.max_model_len)])
    assert caught.value.param == "prompt"
    assert engine.generated == []


async def test_each_prompt_of_a_batch_gets_the_room_it_leaves() -> None:
    engine = FakeEngine()
    generation, _ = await started(engine, [Prompt([1] * 10), Prompt([1] * 30)], max_tokens=80)
    await generation.aclose()
    assert sorted(asked.max_tokens for asked in engine.generated) == [70, 80]


async def test_batch_is_numbered_by_prompt_and_candidate() -> None:
    engine = FakeEngine(reply=lambda prompt, sampling, index: f"{prompt.token_ids} {index}")
    generation, _ = await started(engine, PROMPTS, n=2)
    async with generation:
        folded = await fold(generation)
    texts = [folded.choices[index].text for index in range(4)]
    assert texts == ["[1, 2] 0", "[1, 2] 1", "[3] 0", "[3] 1"]
    assert folded.cached_tokens.keys() == {0, 1}


async def test_one_failing_prompt_ends_the_others() -> None:
    engine = FakeEngine(reply=lambda prompt, sampling, index: "x" * 1000)

    async def failing() -> AsyncGenerator[Step, None]:
        yield Step([Delta(0, "a", [1])])
        raise BadRequest("no", param="prompt")

    healthy = engine.generate(PROMPTS[0], Sampling(max_tokens=1000, stream=True), "a")
    with pytest.raises(BadRequest):
        await fold(merged([failing(), healthy], 1))
    assert engine.running == 0


async def test_merged_does_not_wait_for_the_slow() -> None:
    slow, fast = FakeEngine(), FakeEngine(reply=lambda prompt, sampling, index: "fast")
    slow.go.clear()
    asked = Sampling(max_tokens=50, stream=True)
    sources = [engine.generate(PROMPTS[0], asked, "a") for engine in (slow, fast)]
    steps = merged(sources, 1)
    text = ""
    while text != "fast":
        step = await anext(steps)
        text += step.deltas[0].text
        assert (step.prompt_index, step.deltas[0].index) == (1, 1)
    await steps.aclose()
    assert (slow.running, fast.running) == (0, 0)
