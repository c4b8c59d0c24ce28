"""The frames of streams: their order, and what each carries."""

from typing import Any

import pytest
from msgspec.structs import replace

from tenuto.engine.types import Delta, Prompt, Step, TokenLogprob
from tenuto.errors import EngineLost
from tenuto.generation.answer import Head
from tenuto.generation.fold import Choice, Folded
from tenuto.generation.frames import (
    DONE,
    KEEP_ALIVE,
    ChatFrames,
    CompletionFrames,
    error_frame,
    step_of,
)
from tenuto.generation.translate import Plan
from tests.building import plan
from tests.sse import events

HEAD = Head("id-1", 1700000000, "asked/name")
PROMPT = Prompt([1, 2, 3], "abc")
LOGPROB = TokenLogprob(7, "x", -0.5)


def chat_frames(**fields: Any) -> ChatFrames:
    return ChatFrames(HEAD, [PROMPT], plan("chat", stream=True, **fields))


def text_frames(made: Plan | None = None, **fields: Any) -> CompletionFrames:
    made = made or plan("completion", stream=True, **fields)
    return CompletionFrames(HEAD, [PROMPT], made)


def written(frames: bytes) -> list[Any]:
    return events(frames.decode())


def test_every_chunk_repeats_the_head() -> None:
    frames = chat_frames(stream_options={"include_usage": True})
    chunks = written(frames.opening() + frames.step(Step([Delta(0, "x", [7], "stop")])))
    chunks += written(frames.closing())[:1]
    assert len(chunks) == 4
    for chunk in chunks:
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("id-1", 1700000000, "asked/name")
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["system_fingerprint"].startswith("tenuto-")


def test_chat_opens_each_choice_with_its_role() -> None:
    choices = [chunk["choices"] for chunk in written(chat_frames(n=2).opening())]
    role = {"role": "assistant", "content": ""}
    assert choices == [
        [{"index": i, "delta": role, "logprobs": None, "finish_reason": None}] for i in (0, 1)
    ]


def test_chat_content_and_finish() -> None:
    chunks = written(chat_frames().step(Step([Delta(0, "x", [7], "stop", "!")])))
    content, finish = (chunk["choices"][0] for chunk in chunks)
    assert content == {
        "index": 0,
        "delta": {"content": "x"},
        "logprobs": None,
        "finish_reason": None,
    }
    assert (finish["delta"], finish["finish_reason"], finish["stop_reason"]) == ({}, "stop", "!")


@pytest.mark.parametrize("frames", [chat_frames(), text_frames()])
def test_held_back_text_sends_nothing(frames: ChatFrames | CompletionFrames) -> None:
    assert frames.step(Step([Delta(0, "", [7])])) == b""


@pytest.mark.parametrize(
    "fields", [{"return_token_ids": True}, {"logprobs": True}], ids=["ids", "logprobs"]
)
def test_token_without_text_is_sent_when_its_facts_were_asked_for(fields: Any) -> None:
    delta = Delta(0, "", [7], logprobs=[LOGPROB] if "logprobs" in fields else None)
    (chunk,) = written(chat_frames(**fields).step(Step([delta])))
    choice = chunk["choices"][0]
    assert choice["delta"] == {"content": ""}
    assert choice.get("token_ids") == ([7] if "return_token_ids" in fields else None)
    assert bool(choice["logprobs"]) is ("logprobs" in fields)


def test_completion_text_and_finish() -> None:
    frames = text_frames()
    assert frames.opening() == b""
    chunks = written(frames.step(Step([Delta(0, "x", [7], "length")])))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [("x", None), ("", "length")]
    assert chunks[0]["object"] == "text_completion"


def test_completion_offsets_run_on_for_each_choice() -> None:
    frames = text_frames(logprobs=0, n=2)
    step = Step([Delta(i, "x", [7], logprobs=[LOGPROB]) for i in (0, 1)])
    offsets = [
        chunk["choices"][0]["logprobs"]["text_offset"]
        for chunk in written(frames.step(step) + frames.step(step))
    ]
    assert offsets == [[0], [0], [1], [1]]


def test_echo_sends_the_prompt_before_each_choice() -> None:
    frames = text_frames(echo=True, n=2)
    step = Step([Delta(0, "x", [7]), Delta(1, "y", [8])])
    chunks = written(frames.step(step) + frames.step(step))
    texts = [(c["choices"][0]["index"], c["choices"][0]["text"]) for c in chunks]
    assert texts == [(0, "abc"), (0, "x"), (1, "abc"), (1, "y"), (0, "x"), (1, "y")]


def test_echo_with_log_probabilities_names_every_token() -> None:
    frames = text_frames(echo=True, logprobs=0)
    prompt_logprobs = [None, TokenLogprob(2, "b", -1.0), TokenLogprob(3, "c", -2.0)]
    step = Step([Delta(0, "x", [7], logprobs=[LOGPROB])], prompt_logprobs=prompt_logprobs)
    echo, text = (chunk["choices"][0]["logprobs"] for chunk in written(frames.step(step)))
    assert echo["tokens"] == ["a", "b", "c"]
    assert echo["token_logprobs"] == [None, -1.0, -2.0]
    assert echo["text_offset"] == [0, 1, 2]
    assert text["text_offset"] == [3]


def test_echo_names_token_ids_when_asked() -> None:
    frames = text_frames(echo=True, logprobs=0, return_tokens_as_token_ids=True)
    prompt_logprobs = [None, TokenLogprob(2, "b", -1.0), TokenLogprob(3, "c", -2.0)]
    step = Step([Delta(0, "x", [7])], prompt_logprobs=prompt_logprobs)
    (echo, *_) = written(frames.step(step))
    tokens = echo["choices"][0]["logprobs"]["tokens"]
    assert tokens == ["token_id:1", "token_id:2", "token_id:3"]


def test_echo_with_log_probabilities_for_every_choice() -> None:
    frames = text_frames(echo=True, logprobs=0, n=2)
    prompt_logprobs: list[TokenLogprob | None] = [None, TokenLogprob(2, "bc", -1.0)]
    first = frames.step(Step([Delta(0, "x", [7])], prompt_logprobs=prompt_logprobs))
    second = frames.step(Step([Delta(1, "y", [8])]))
    echoes = [written(part)[0]["choices"][0]["logprobs"] for part in (first, second)]
    assert echoes[0] is not None
    assert echoes[0] == echoes[1]


def test_dropped_completion_is_the_prompt_alone() -> None:
    frames = text_frames(echo=True, max_tokens=0)
    chunks = written(frames.step(Step([Delta(0, "x", [7], "stop", "!")])))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [("abc", None), ("", "length")]
    assert choices[1]["stop_reason"] is None
    assert frames.tally.completion_tokens == 0


@pytest.mark.parametrize("make", [chat_frames, text_frames])
def test_usage_comes_once_and_last(make: Any) -> None:
    frames = make(stream_options={"include_usage": True})
    body = written(frames.opening() + frames.step(Step([Delta(0, "x", [7, 8], "stop")], 2)))
    assert all("usage" not in chunk for chunk in body)
    usage, done = written(frames.closing())
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert done == "[DONE]"


@pytest.mark.parametrize("make", [chat_frames, text_frames])
def test_no_usage_unless_asked_for(make: Any) -> None:
    assert make().closing() == DONE


def test_error_frame_is_the_envelope() -> None:
    (error,) = written(error_frame(EngineLost()))
    assert error["error"]["code"] == "503"


def test_keep_alive_is_a_comment() -> None:
    assert KEEP_ALIVE.startswith(b":")
    assert KEEP_ALIVE.endswith(b"\n\n")


def test_ranked_choices_as_steps() -> None:
    made = replace(plan("completion", n=2, best_of=3), n=2)
    choices = [Choice(i, f"c{i}", [i], finish_reason="stop", stop_reason="!") for i in range(4)]
    folded = Folded(cached_tokens={0: 5, 1: 6}, prompt_logprobs={1: [None]})
    steps = list(step_of(choices, folded, made))
    assert [step.deltas[0].text for step in steps] == ["c0", "c1", "c2", "c3"]
    assert [step.prompt_index for step in steps] == [0, 0, 1, 1]
    assert [step.cached_tokens for step in steps] == [5, 5, 6, 6]
    assert [step.prompt_logprobs for step in steps] == [None, None, [None], [None]]
    assert steps[0].deltas[0].finish_reason == "stop"
