"""What the engine seam promises, by the same tests on the scripted engine and on real vLLM."""

import asyncio
import dataclasses
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import pytest_asyncio
from msgspec.structs import replace

from tenuto.engine.base import Backend, Engine, Prompts
from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.engine.forkserver import EngineContext, prepare_environment
from tenuto.engine.lazy import LazyVllm
from tenuto.engine.types import ChatPrompt, EngineSpec, LoraSpec, Prompt, Sampling, Step, Steps
from tenuto.errors import EngineLost, EngineStartError
from tenuto.generation.fold import Choice, Folded
from tests.live.conftest import DEMO, MODEL
from tests.live.knowledge import ANSWERS, COLOURS, COUNTING, GREETINGS

pytestmark = [pytest.mark.live, pytest.mark.asyncio(loop_scope="module")]

SPEC = EngineSpec(MODEL, DEMO / "checkpoint", max_model_len=8192, kv_cache_memory_bytes=64 << 20)
RANDOM = Sampling(max_tokens=400, temperature=2.0, seed=3)
GREEDY = Sampling(max_tokens=400, temperature=0)
ENDLESS = Sampling(max_tokens=4000, ignore_eos=True, stream=True)
LONG = "Again. " * 600
END_OF_TURN = "<|eot_id|>"
LOST_S = 20


@dataclass
class Subject:
    engine: Engine
    prompts: Prompts

    async def ask(self, question: str, sampling: Sampling) -> list[Step]:
        async with aclosing(await self.start(question, sampling)) as steps:
            return [step async for step in steps]

    async def start(self, question: str, sampling: Sampling) -> Steps:
        return self.engine.generate(await self.prompt(question), sampling, uuid.uuid4().hex)

    async def prompt(self, question: str) -> Prompt:
        return await self.prompts.chat(ChatPrompt([{"role": "user", "content": question}]))

    async def choices(self, question: str, sampling: Sampling) -> list[Choice]:
        return folded(await self.ask(question, sampling))

    async def decoded(self, choice: Choice) -> str:
        text = await self.prompts.detokenize(choice.token_ids)
        return text.removesuffix(END_OF_TURN)


def folded(steps: list[Step]) -> list[Choice]:
    whole = Folded()
    for step in steps:
        whole.add(step)
    return [whole.choices[index] for index in sorted(whole.choices)]


def by_heart(prompt: Prompt, sampling: Sampling, index: int) -> str:
    """The scripted engine's answers: the demo model's, and another one for each candidate."""
    question = (prompt.text or "").removeprefix("<user>").removesuffix("<assistant>")
    if sampling.ignore_eos:
        return LONG
    return ANSWERS[question] + f" ({index})" * index


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "vllm"])
async def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    if request.param == "fake":
        yield FakeBackend(reply=by_heart)
        return
    with real_backend(tmp_path_factory.mktemp("cache")) as real:
        yield real


@contextmanager
def real_backend(cache_dir: Path) -> Iterator[LazyVllm]:
    with mock.patch.dict(os.environ):
        prepare_environment()
        context = EngineContext()
        context.start_server()
        yield LazyVllm(context, cache_dir, drain_s=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject(backend: Backend) -> AsyncIterator[Subject]:
    engine = await backend.engine(SPEC)
    yield Subject(engine, await backend.prompts(SPEC))
    await engine.close(0)


@pytest.mark.parametrize("question", [COLOURS, GREETINGS])
@pytest.mark.parametrize(
    "sampling",
    [
        RANDOM,
        GREEDY,
        replace(RANDOM, n=3),
        replace(RANDOM, logprobs=2),
        replace(RANDOM, n=4, logprobs=0),
        replace(RANDOM, n=2, stop=("e", "o")),
        replace(GREEDY, stop=("lack", "ao"), logprobs=1),
        replace(RANDOM, n=2, max_tokens=7),
        replace(RANDOM, n=2, detokenize=False, logprobs=1),
    ],
    ids=["random", "greedy", "n", "logprobs", "ranking", "stop", "greedy-stop", "length", "ids"],
)
async def test_the_deltas_fold_to_the_final_event(
    subject: Subject, question: str, sampling: Sampling
) -> None:
    deltas = await subject.ask(question, replace(sampling, stream=True))
    final = await subject.ask(question, sampling)
    assert folded(deltas) == folded(final)
    [whole] = final
    assert len(whole.deltas) == sampling.n


async def test_a_stream_comes_in_steps(subject: Subject) -> None:
    """At least a few: vLLM merges what came while nobody read."""
    steps = await subject.ask(COUNTING, replace(GREEDY, stream=True))
    assert len(steps) > 3
    assert sum(step.deltas[0].finish_reason is not None for step in steps) == 1


@pytest.mark.parametrize("logprobs", [None, 0], ids=["deltas", "outputs"])
async def test_a_slow_reader_misses_nothing(subject: Subject, logprobs: int | None) -> None:
    """vLLM, or the queue in its place, merges what came meanwhile, the end included."""
    asked = replace(GREEDY, stop=("white",), logprobs=logprobs)
    async with aclosing(await subject.start(COLOURS, replace(asked, stream=True))) as steps:
        read = [await anext(steps)]
        await asyncio.sleep(0.5)
        read += [step async for step in steps]
    assert folded(read) == folded(await subject.ask(COLOURS, asked))
    if isinstance(subject.engine, FakeEngine):
        return
    assert len(read) == 2


async def test_a_reader_may_come_back_after_the_end(subject: Subject) -> None:
    steps = await subject.start(COLOURS, replace(GREEDY, stream=True))
    assert folded([step async for step in steps])
    assert await anext(steps, None) is None
    await steps.aclose()


async def test_a_greedy_answer_ends_by_itself(subject: Subject) -> None:
    [choice] = await subject.choices(COLOURS, GREEDY)
    assert choice.text == ANSWERS[COLOURS]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", None)
    assert choice.logprobs is None


@pytest.mark.parametrize("stream", [True, False])
async def test_n_candidates_have_indices_of_their_own(subject: Subject, stream: bool) -> None:
    choices = await subject.choices(COLOURS, replace(RANDOM, n=4, stream=stream))
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in choices}) == 4


@pytest.mark.parametrize("stream", [True, False])
async def test_each_candidate_can_be_ranked(subject: Subject, stream: bool) -> None:
    sampling = replace(RANDOM, n=4, logprobs=0, stream=stream)
    choices = await subject.choices(COLOURS, sampling)
    assert len({choice.cumulative_logprob for choice in choices}) == 4
    assert all(choice.cumulative_logprob < 0 for choice in choices)
    assert all(len(choice.logprobs or ()) == len(choice.token_ids) for choice in choices)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 9, 14])
async def test_max_tokens_ends_with_length(subject: Subject, stream: bool, max_tokens: int) -> None:
    """Also in the middle of a character, of which nothing is shown then."""
    sampling = replace(GREEDY, max_tokens=max_tokens, stream=stream)
    [choice] = await subject.choices(GREETINGS, sampling)
    assert len(choice.token_ids) == max_tokens
    assert (choice.finish_reason, choice.stop_reason) == ("length", None)
    assert ANSWERS[GREETINGS].startswith(choice.text)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_string_cuts_the_text(subject: Subject, stream: bool) -> None:
    stops = ("nowhere", "violet", "green", "lue")
    [choice] = await subject.choices(COLOURS, replace(GREEDY, stop=stops, stream=stream))
    assert choice.text == ANSWERS[COLOURS].partition("green")[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "green")
    # The tokens of the stop string were generated, and count.
    assert (await subject.decoded(choice)).endswith("green")


@pytest.mark.parametrize("stream", [True, False])
async def test_max_tokens_before_a_stop_string(subject: Subject, stream: bool) -> None:
    sampling = replace(GREEDY, stop=("white",), max_tokens=3, stream=stream)
    [choice] = await subject.choices(COLOURS, sampling)
    assert (choice.finish_reason, choice.stop_reason) == ("length", None)


@pytest.mark.parametrize("stream", [True, False])
async def test_without_detokenizing_only_token_ids(subject: Subject, stream: bool) -> None:
    sampling = replace(GREEDY, detokenize=False, logprobs=1, stream=stream)
    [choice] = await subject.choices(GREETINGS, sampling)
    assert choice.text == ""
    assert await subject.decoded(choice) == ANSWERS[GREETINGS]
    entries = choice.logprobs or []
    assert [entry.token_id for entry in entries] == choice.token_ids
    assert not any(entry.token for entry in entries)
    assert not any(top.token for entry in entries for top in entry.top)


@pytest.mark.parametrize("n", [1, 3])
async def test_closing_the_iterator_aborts(subject: Subject, n: int) -> None:
    steps = await subject.start(COUNTING, replace(ENDLESS, n=n))
    await anext(steps)
    assert subject.engine.stats().unfinished_requests == n
    await steps.aclose()
    assert subject.engine.stats().unfinished_requests == 0


async def test_cancelling_the_reader_aborts(subject: Subject) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async with aclosing(await subject.start(COUNTING, ENDLESS)) as steps:
            async for _ in steps:
                began.set()

    reader = asyncio.create_task(read())
    await began.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert subject.engine.stats().unfinished_requests == 0


async def test_a_finished_request_leaves_nothing(subject: Subject) -> None:
    await subject.ask(COLOURS, replace(RANDOM, n=2))
    assert subject.engine.stats().unfinished_requests == 0


async def test_a_check_is_no_request_and_always_the_same(subject: Subject) -> None:
    first = await subject.engine.check()
    await subject.ask(COLOURS, RANDOM)
    checking = asyncio.create_task(subject.engine.check())
    while not checking.done():
        assert subject.engine.stats().unfinished_requests == 0
        await asyncio.sleep(0)
    assert first.agrees(await checking)


async def test_a_check_beside_requests(subject: Subject) -> None:
    alone = await subject.engine.check()
    async with aclosing(await subject.start(COUNTING, ENDLESS)) as steps:
        await anext(steps)
        assert alone.agrees(await subject.engine.check())
        assert subject.engine.stats().unfinished_requests == 1


async def test_no_sleep_where_the_platform_cannot(backend: Backend, subject: Subject) -> None:
    assert not subject.engine.can_sleep
    with pytest.raises(RuntimeError):
        await subject.engine.sleep(1)
    assert (await subject.choices(COLOURS, GREEDY))[0].text == ANSWERS[COLOURS]


@pytest.mark.parametrize("stream", [True, False])
async def test_closing_the_engine_loses_its_requests(backend: Backend, stream: bool) -> None:
    """An answer that was cut must not look finished."""
    engine = await backend.engine(SPEC)
    subject = Subject(engine, await backend.prompts(SPEC))
    finishes: list[str | None] = []

    async def read() -> None:
        async with aclosing(
            await subject.start(COUNTING, replace(ENDLESS, stream=stream))
        ) as steps:
            async for step in steps:
                finishes.extend(delta.finish_reason for delta in step.deltas)

    async with asyncio.timeout(LOST_S):
        reader = asyncio.create_task(read())
        # Neither engine has an event for it.
        while not engine.stats().unfinished_requests:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await engine.close(0)
        with pytest.raises(EngineLost):
            await reader
    assert set(finishes) <= {None}


async def test_an_adapter_that_does_not_load_is_named(backend: Backend, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, loras=(LoraSpec("adrift", tmp_path / "gone", 8),))
    with pytest.raises(EngineStartError) as caught:
        await backend.engine(spec)
    assert caught.value.message.startswith(f"model {MODEL}: cannot load its LoRAs: ")
    assert "adrift" in caught.value.message
    assert "\n" not in caught.value.message
