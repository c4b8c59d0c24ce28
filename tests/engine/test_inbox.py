"""What a reader finds of a stream, however late it comes."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto.engine.channel import Inbox
from tenuto.engine.types import Step
from tenuto.errors import BadRequest, EngineLost
from tests.engine.test_channel import LOGPROB, candidates, delta, step, taken

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "bc", "é"]),
        st.integers(0, 1),
        st.sampled_from([None, None, [LOGPROB]]),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(given=STEPS, is_lagging=st.booleans())
def test_whoever_lags_loses_nothing(given: list[Any], is_lagging: bool) -> None:
    asyncio.run(_lag(given, is_lagging))


async def _lag(given: list[Any], is_lagging: bool) -> None:
    inbox, steps, read = Inbox(), [], []
    for text, index, logprobs, _ in given:
        steps.append(step(text, index=index, logprobs=logprobs))
    steps += [step("", "stop", index=0, stop_reason=5), step("", "length", index=1)]
    # A reader owns what it is given.
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(steps), type=list[Step])
    for number, one in enumerate(sent):
        inbox.put(one)
        if not is_lagging or (number < len(given) and given[number][3]):
            read.append(await inbox.take())
    inbox.end()
    read += await taken(inbox)
    assert candidates(read) == candidates(steps)


async def test_a_lagging_reader_finds_steps_merged() -> None:
    inbox = Inbox()
    for text in "abc":
        inbox.put(step(text))
    inbox.put(step("d", "stop"))
    assert await inbox.take() == step("abcd", "stop")


async def test_merging_keeps_what_came_first() -> None:
    inbox = Inbox()
    inbox.put(Step([delta("a")], cached_tokens=9, prompt_logprobs=[None, LOGPROB]))
    inbox.put(Step([delta("b", "stop")], cached_tokens=9))
    assert await inbox.take() == Step(
        [delta("ab", "stop")], cached_tokens=9, prompt_logprobs=[None, LOGPROB]
    )


async def test_a_reader_that_gave_up_once_reads_on() -> None:
    inbox = Inbox()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(inbox.take(), 0.001)
    inbox.put(step("a"))
    assert await inbox.take() == step("a")


async def test_what_came_before_an_error_is_read_first() -> None:
    inbox = Inbox()
    inbox.put(step("a"))
    inbox.end(BadRequest("no", param="x"))
    inbox.end(EngineLost())
    assert await inbox.take() == step("a")
    for _ in range(2):
        with pytest.raises(BadRequest):
            await inbox.take()
