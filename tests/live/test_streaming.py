"""Streams: the same answer as without, in the right chunks."""

from typing import Any

import pytest

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS, GREETINGS, HELLO
from tests.live.ways import (
    CHAT,
    CHAT_STREAMED,
    COMPLETIONS,
    COMPLETIONS_STREAMED,
    DONE,
    Way,
    chunks_of,
    events_of,
)

pytestmark = pytest.mark.live

RANDOM: dict[str, Any] = {"temperature": 1.5, "seed": 11}
UNFINISHED = "\ufffd"
each_pair = pytest.mark.parametrize(
    ("plain", "streamed"),
    [(CHAT, CHAT_STREAMED), (COMPLETIONS, COMPLETIONS_STREAMED)],
    ids=["chat", "completions"],
)
each_stream = pytest.mark.parametrize("way", [CHAT_STREAMED, COMPLETIONS_STREAMED], ids=str)


@each_pair
@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"n": 3},
        {"n": 3, "logprobs": 2},
        {"best_of": 5},
        {"n": 2, "best_of": 5, "logprobs": 2},
        {"n": 3, "stop": ["e", "white"]},
        {"stop": ["ow, "], "include_stop_str_in_output": True},
        {"max_tokens": 7},
        {"detokenize": False, "logprobs": 1},
        {"n": 2, "skip_special_tokens": False, "min_tokens": 40},
    ],
    ids=str,
)
def test_a_stream_is_the_answer_in_pieces(
    live: LiveServer, plain: Way, streamed: Way, fields: dict[str, Any]
) -> None:
    whole = plain.ask(live, COLOURS, **RANDOM, **fields)
    pieces = streamed.ask(live, COLOURS, **RANDOM, **fields)
    assert pieces.choices == whole.choices
    assert _counts(pieces.usage) == _counts(whole.usage)


@each_stream
@pytest.mark.parametrize("max_tokens", [*range(1, 24), 200])
def test_characters_are_never_cut(live: LiveServer, way: Way, max_tokens: int) -> None:
    chunks = _stream(live, way, GREETINGS, temperature=0, max_tokens=max_tokens)
    pieces = [_text(choice) for chunk in chunks for choice in chunk["choices"]]
    assert not any(UNFINISHED in piece for piece in pieces)
    text = "".join(pieces)
    assert (way.lead + ANSWERS[GREETINGS]).startswith(text)
    assert (text == way.lead + ANSWERS[GREETINGS]) == (max_tokens == 200)


@each_stream
@pytest.mark.parametrize("fields", [{"n": 1}, {"n": 3}, {"n": 2, "best_of": 4}], ids=str)
def test_each_choice_ends_once(live: LiveServer, way: Way, fields: dict[str, int]) -> None:
    chunks = _stream(live, way, COLOURS, **RANDOM, **fields)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in range(fields["n"]):
        own = [choice for choice in choices if choice["index"] == index]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert _text(own[-1]) == ""
    assert {choice["index"] for choice in choices} == set(range(fields["n"]))


@pytest.mark.parametrize("n", [1, 3])
def test_every_chat_choice_opens_with_its_role(live: LiveServer, n: int) -> None:
    chunks = _stream(live, CHAT_STREAMED, COLOURS, **RANDOM, n=n)
    opening = [chunk["choices"][0] for chunk in chunks[:n]]
    assert [choice["index"] for choice in opening] == list(range(n))
    assert all(c["delta"] == {"role": "assistant", "content": ""} for c in opening)
    assert not any("role" in c["delta"] for chunk in chunks[n:] for c in chunk["choices"])


def test_every_completions_chunk_has_text(live: LiveServer) -> None:
    chunks = _stream(live, COMPLETIONS_STREAMED, COLOURS, **RANDOM, n=2)
    assert all(isinstance(c["text"], str) for chunk in chunks for c in chunk["choices"])


@each_stream
def test_usage_comes_last_and_alone(live: LiveServer, way: Way) -> None:
    options = {"stream_options": {"include_usage": True}}
    *chunks, last = _stream(live, way, HELLO, temperature=0, **options)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 1
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


@each_stream
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}], ids=str)
def test_usage_comes_only_when_asked(live: LiveServer, way: Way, options: Any) -> None:
    chunks = _stream(live, way, HELLO, temperature=0, stream_options=options)
    assert not any("usage" in chunk or not chunk["choices"] for chunk in chunks)


@each_stream
def test_chunks_share_one_head(live: LiveServer, way: Way) -> None:
    chunks = _stream(live, way, HELLO, temperature=0, model="demo")
    heads = {tuple(chunk[key] for key in ("id", "object", "created", "model")) for chunk in chunks}
    [(_, kind, _, model)] = heads
    assert kind == {"chat": "chat.completion.chunk", "completions": "text_completion"}[way.endpoint]
    assert model == "demo"


@each_stream
def test_events_arrive_while_the_engine_works(live: LiveServer, way: Way) -> None:
    body = {"model": MODEL, **way.body(HELLO, ignore_eos=True, max_tokens=2000)}
    with live.client.stream("POST", way.path, json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        # What came since is only read to be shown.
        assert live.unfinished() > 0, list(lines)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


@each_stream
def test_a_refused_stream_has_its_status(live: LiveServer, way: Way) -> None:
    body = {"model": MODEL, **way.body("word " * 9000)}
    response = live.client.post(way.path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == {"chat": "messages"}.get(way.endpoint, "prompt")


@each_stream
def test_done_comes_once(live: LiveServer, way: Way) -> None:
    body = {"model": MODEL, **way.body(HELLO, temperature=0)}
    assert list(events_of(live.client.post(way.path, json=body))).count(DONE) == 1


def _stream(live: LiveServer, way: Way, prompt: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, **way.body(prompt), "stream_options": None, **fields}
    response = live.client.post(way.path, json=body)
    assert response.status_code == 200, response.text
    return chunks_of(response)


def _text(choice: dict[str, Any]) -> str:
    text: str = choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return text


def _counts(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Without the cached tokens, which the first of two equal requests does not have."""
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
