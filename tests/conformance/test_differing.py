"""What differs between two answers to one request."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tenuto.conformance.differing import differences
from tenuto.conformance.exchange import Exchange, Request

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
GREEDY = {"temperature": 0}


def answer(value: Any, status: int = 200, headers: Any = JSON, **body: Any) -> Exchange:
    return Exchange(Request("POST", CHAT, body), status, headers, json.dumps(value))


def stream(*chunks: Any, headers: Any = SSE, done: bool = True, **body: Any) -> Exchange:
    events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"] * done
    text = "".join(f"data: {event}\n\n" for event in events)
    return Exchange(Request("POST", CHAT, {"stream": True, **body}), 200, headers, text)


def chat(text: str = "Hi", finish: Any = "stop", index: int = 0, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": finish, **more}


def whole(*choices: Any, prompt_tokens: int = 3, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt_tokens}
    return {"object": "chat.completion", "choices": list(choices), "usage": usage, **more}


def piece(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


ROLE, TEXT, END = piece(role="assistant"), piece(content="Hi"), piece(finish="stop")
USAGE = {"choices": [], "usage": {"prompt_tokens": 3}}


def row(aspect: str, a: str, b: str) -> list[tuple[str, str, str]]:
    return [(aspect, a, b)]


def told(a: Exchange, b: Exchange, same_checkpoint: bool = False) -> list[tuple[str, str, str]]:
    return [(d.aspect, d.a, d.b) for d in differences(a, b, same_checkpoint)]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (answer({"a": 1}, 200), answer({"b": 1}, 400), row("status", "200", "400")),
        (answer({"a": 1}), answer({"a": 2.5}), []),
        (answer({"a": 1}), answer({"a": True}), row("a", "number", "boolean")),
        (answer({"a": None}), answer({"a": "x"}), row("a", "null", "string")),
        (answer({"a": {"b": 1}}), answer({}), row("a", "present", "absent")),
        (answer({"a": {"b": {"c": 1}}}), answer({"a": {}}), row("a.b", "present", "absent")),
        (answer({"a": {"b": 1}}), answer({"a": None}), row("a", "object", "null")),
        (answer({"a": []}), answer({"a": [{"b": 1}]}), row("a", "[]", "array")),
        (answer({"a": [1, None]}), answer({"a": [1]}), row("a[]", "null or number", "number")),
        (answer({"a": [[], [1]]}), answer({"a": [[2]]}), []),
        (answer([1]), answer({}), row("body", "array", "object")),
        (answer({"object": "a"}), answer({"object": "b"}), row("object", "a", "b")),
        (answer({"id": "a", "model": "b"}), answer({"id": "c", "model": "d"}), []),
        (
            answer({"error": {"code": "400"}}, 400),
            answer({"error": {"code": 400}}, 400),
            row("error.code", '"400"', "400"),
        ),
        (
            answer({"error": {"param": None}}, 400),
            answer({"error": {"param": "None"}}, 400),
            row("error.param", "null", "None"),
        ),
        (
            answer({"error": {"message": "a", "type": "x"}}, 400),
            answer({"error": {"message": "b", "type": "y"}}, 400),
            row("error.type", "x", "y"),
        ),
        (
            answer({"logprobs": {"top_logprobs": [{"a": 1}]}}),
            answer({"logprobs": {"top_logprobs": [{"b": None}]}}),
            [],
        ),
    ],
)
def test_answers(a: Exchange, b: Exchange, expected: Any) -> None:
    assert told(a, b) == expected
    assert told(b, a) == [(aspect, y, x) for aspect, x, y in expected]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (
            {"content-type": "text/html"},
            JSON,
            row("header content-type", "text/html", JSON["content-type"]),
        ),
        ({**JSON, "content-type": "application/json; charset=utf-8"}, JSON, []),
        ({**JSON, "retry-after": "1"}, {**JSON, "retry-after": "9"}, []),
        ({**JSON, "retry-after": "1"}, JSON, row("header retry-after", "present", "absent")),
        ({**JSON, "x-should-retry": "true"}, JSON, row("header x-should-retry", "true", "absent")),
        ({**JSON, "cache-control": "no-cache", "date": "x"}, JSON, []),
    ],
)
def test_headers(a: dict[str, str], b: dict[str, str], expected: Any) -> None:
    assert told(answer({}, headers=a), answer({}, headers=b)) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([ROLE, TEXT, TEXT, END, USAGE], [ROLE, TEXT, END, USAGE], []),
        (
            [ROLE, TEXT, END],
            [ROLE, TEXT],
            row("events", "role content finish done", "role content done"),
        ),
        ([ROLE, END], [ROLE, {"error": {}}], row("events", "role finish done", "role error done")),
        ([END], [END, USAGE], row("events", "finish done", "finish usage done")),
        ([END], [END, piece()], row("events", "finish done", "finish empty done")),
        (
            [{**USAGE, "choices": [{"delta": {}}]}],
            [USAGE],
            row("usage: choices", "array", "[]"),
        ),
        ([{**TEXT, "x": 1}, TEXT], [TEXT], row("content: x", "present", "absent")),
        ([{**TEXT, "object": "a"}], [{**TEXT, "object": "b"}], row("content: object", "a", "b")),
        (
            [TEXT, piece(1, content="a"), piece(finish="stop"), piece(1, "stop")],
            [piece(1, content="a"), TEXT, piece(1, "stop"), piece(finish="stop")],
            [],
        ),
        (
            [TEXT, piece(1, content="a"), END, piece(1, "stop")],
            [TEXT, piece(1, content="a"), END],
            row("events", "content finish done", "content finish & content done"),
        ),
    ],
)
def test_streams(a: list[Any], b: list[Any], expected: Any) -> None:
    found = [d for d in told(stream(*a), stream(*b)) if d[0] != "number of choices"]
    assert found == expected


def test_the_end_of_a_stream_and_its_headers_count() -> None:
    assert told(stream(END), stream(END, done=False)) == row("events", "finish done", "finish")
    bare = {"content-type": "text/event-stream"}
    assert told(stream(END), stream(END, headers=bare)) == row(
        "header cache-control", "no-cache", "absent"
    )


def test_an_unreadable_stream_says_why() -> None:
    broken = replace(stream(END), text="data: {\n\n")
    [(aspect, a, b)] = told(stream(END), broken)
    assert (aspect, a) == ("events", "finish done")
    assert "not JSON" in b


def test_an_answer_that_is_no_json_or_never_came() -> None:
    text = replace(answer({}), text="I'm alive!")
    assert told(text, text) == []
    assert told(text, answer({})) == row("body", "not JSON", "JSON")
    cut = replace(answer({}), failure="the connection broke")
    assert told(answer({}), cut) == row("answer", "whole", "the connection broke")
    assert told(cut, cut) == []
    none = Exchange(cut.request, failure="cannot connect")
    assert told(answer({}), none) == row("status", "200", "cannot connect")
    assert told(answer({}), replace(none, left=True)) == []


@pytest.mark.parametrize(
    "value", ["x", 5, None, [1], {"choices": 5}, {"choices": [{"delta": 5}, 5]}]
)
def test_any_json_can_be_compared(value: Any) -> None:
    assert told(answer(value), answer(value)) == []
    assert told(stream(value), stream(value)) == []


def test_deep_json_can_be_compared() -> None:
    deep = replace(answer({}), text="[" * 900 + "]" * 900)
    assert told(deep, deep) == []


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (whole(chat(), chat(index=1)), whole(chat()), row("number of choices", "2", "1")),
        (whole(chat("A")), whole(chat("B")), row("text", '"A"', '"B"')),
        (
            whole(chat(finish="stop")),
            whole(chat(finish="length")),
            row("choices[].finish_reason", "stop", "length"),
        ),
        (
            whole(chat(stop_reason=None)),
            whole(chat(stop_reason=5)),
            row("choices[].stop_reason", "null", "5"),
        ),
        (
            whole(chat(), prompt_tokens=3),
            whole(chat(), prompt_tokens=4),
            row("usage.prompt_tokens", "3", "4"),
        ),
    ],
)
def test_what_the_checkpoint_decides(a: Any, b: Any, expected: Any) -> None:
    """Only when both serve the same one, and texts only when nothing is drawn."""
    greedy = answer(a, **GREEDY), answer(b, **GREEDY)
    assert told(*greedy, same_checkpoint=True) == expected
    is_counted = expected[0][0] == "number of choices"
    assert told(*greedy) == (expected if is_counted else [])
    random = answer(a, temperature=1), answer(b, temperature=1)
    is_drawn = expected[0][0] not in ("number of choices", "usage.prompt_tokens")
    assert told(*random, same_checkpoint=True) == ([] if is_drawn else expected)
    other = answer(b, **GREEDY, messages=["another"])
    assert told(greedy[0], other, same_checkpoint=True) == (expected if is_counted else [])
    renamed_ = answer(b, **GREEDY, model="another")
    assert told(greedy[0], renamed_, same_checkpoint=True) == expected
