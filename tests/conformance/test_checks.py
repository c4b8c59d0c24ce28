"""Each check turns on exactly what it is for: the least that breaks it, and what does not."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tenuto.conformance.checks import judge
from tenuto.conformance.checks.registry import ACROSS, EACH
from tenuto.conformance.exchange import Broken, Exchange, Request, Unsuitable

ASKED = Request("POST", "/v1/completions", {"stream": False})
STREAMED = Request("POST", "/v1/chat/completions", {"stream": True})


def whole(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Exchange:
    text = body if isinstance(body, str) else json.dumps(body)
    return Exchange(ASKED, status, {"content-type": "application/json", **(headers or {})}, text)


def says(*texts: str, tokens: int = 1) -> Exchange:
    choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate(texts)]
    usage = {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": 2 + tokens}
    return whole({"choices": choices, "usage": usage})


def stream(*chunks: Any, done: int = 1) -> Exchange:
    events = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    text = "".join(f"data: {event}\n\n" for event in [*events, *["[DONE]"] * done])
    return Exchange(STREAMED, 200, {"content-type": "text/event-stream; charset=utf-8"}, text)


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": said, "finish_reason": finish}]}


def drawn(
    *tokens: str,
    values: float = -1.0,
    top: dict[str, float] | None = None,
    text: str | None = None,
) -> Exchange:
    """One choice for each token, its first; `top` are the alternatives that are shown, `text` is
    another one than the token's."""
    rows = [
        {
            "index": i,
            "text": token if text is None else text,
            "logprobs": {
                "tokens": [token],
                "token_logprobs": [values],
                "top_logprobs": [top or {}],
            },
        }
        for i, token in enumerate(tokens)
    ]
    return whole({"choices": rows, "usage": {"completion_tokens": len(tokens), "prompt_tokens": 2}})


def in_parts(*parts: list[int] | None, likelihoods: tuple[float, float] = (-1, -2)) -> Exchange:
    """An é whose tokens are parts of it: they have one text, and so have their alternatives."""
    half = "\ufffd"
    top = [{"token": half, "logprob": value} for value in likelihoods]
    entries = [{"token": half, "logprob": -1, "bytes": b, "top_logprobs": top} for b in parts]
    choice = {"index": 0, "message": {"content": "é"}, "logprobs": {"content": entries}}
    return whole({"choices": [choice], "usage": {"completion_tokens": 2, "prompt_tokens": 2}})


def timed(first_s: float | None, elapsed_s: float) -> Exchange:
    return replace(stream(TEXT), first_s=first_s, elapsed_s=elapsed_s)


def with_ids(*token_ids: int, prompt: list[Any] | None = None) -> Exchange:
    """Of an answer of two tokens to two."""
    choice = {"index": 0, "text": "", "token_ids": token_ids, "prompt_logprobs": prompt}
    return whole({"choices": [choice], "usage": {"completion_tokens": 2, "prompt_tokens": 2}})


def refusal(message: str = "no", code: Any = "400", status: int = 400, **more: Any) -> Exchange:
    error = {"message": message, "type": None, "param": None, "code": code, **more}
    return whole({"error": error}, status)


MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "me"}
USAGE = {"choices": [], "usage": {"completion_tokens": 1}}
TEXT = delta(content="a")
END = delta(finish="stop")
Each = tuple[str, Any, Exchange, Exchange]
EACH_ROWS: list[Each] = [
    ("status", 200, says("a"), refusal()),
    ("status", [400, 404], refusal(), says("a")),
    (
        "header",
        {"allow": "^get$"},
        whole({}, headers={"allow": "GET"}),
        whole({}, headers={"allow": "GETS"}),
    ),
    ("header", {"allow": "get"}, whole({}, headers={"allow": "get"}), whole({})),
    ("header", {"allow": None}, whole({}), whole({}, headers={"allow": ""})),
    ("lacks", ["sk-[a-z]{3}", "x"], whole("sk-ab"), whole("sk-abc")),
    ("lacks", ["x", "sk-"], whole("text" * 0), whole("sk-")),
    ("error", {}, refusal(code="404"), refusal(status=404)),
    ("error", {"status": [400, 404]}, refusal(status=404), refusal(status=500)),
    ("error", {"code": "400"}, refusal(), refusal(code="404")),
    ("error", {"param": None}, refusal(), refusal(param="n")),
    ("error", {}, refusal(), whole({"error": "no"}, 400)),
    ("error", {}, refusal(code=400), refusal(code=[400])),
    ("error", {}, refusal(code=None), refusal(message="")),
    ("error", {}, refusal(), Exchange(ASKED, 400, {}, refusal().text)),
    ("message", "^a-b$", refusal("a\N{EN DASH}b"), refusal("a\N{EM DASH}b")),
    ("message", "a.*c", refusal("a\nc"), refusal("c a")),
    ("message", "a", refusal("a"), whole({"error": {}}, 400)),
    ("body", {"a": {"0": 1}}, whole({"a": [1, 2]}), whole({"a": [2, 1]})),
    ("body", {"a": [{"b": 1}]}, whole({"a": [{"b": 1, "c": 2}]}), whole({"a": [{"b": 1}] * 2})),
    ("body", {"a": {}}, whole({"a": {}}), whole({"b": {}})),
    ("body", {"a": {}}, whole({"a": {}}), whole({"a": "text"})),
    ("unique_ids", True, whole({"data": [{"id": "a"}]}), whole({"data": [{"id": "a"}] * 2})),
    ("unique_ids", True, whole({"data": [{"id": "a"}]}), whole({"data": []})),
    ("choices", 2, says("a", "b"), says("a")),
    ("finish", "stop", says("a"), drawn("a")),
    ("finish", "stop", stream(TEXT, END), stream(TEXT, END, END)),
    ("usage", {"completion_tokens": 3}, says("a", tokens=3), says("a", tokens=4)),
    ("usage", {"total_tokens": 3}, says("a"), drawn("a")),
    ("usage_at_least", {"completion_tokens": 3}, says("a", tokens=3), says("a", tokens=2)),
    ("usage_adds_up", True, says("a"), says("a", tokens=0)),
    (
        "logprobs",
        {"top": 1},
        drawn("a", top={"a": -1}),
        drawn("a", top={"a": -1, "b": -2, "c": -3}),
    ),
    (
        "logprobs",
        {"top": 1},
        drawn("a", top={"a": -1, "b": -2}),
        drawn("a", values=0.5, top={"a": -1}),
    ),
    ("logprobs", {"top": 2}, in_parts([195], [169]), in_parts([195])),
    ("token_ids", True, with_ids(7, 8), with_ids(7)),
    ("prompt_logprobs", True, with_ids(7, prompt=[None, 1]), with_ids(7, prompt=[None])),
    ("prompt_logprobs", True, with_ids(7, prompt=[None, 1]), with_ids(7)),
    ("schema", "model", whole(MODEL), whole(MODEL | {"created": "now"})),
    ("schema", "models", whole({"data": [MODEL]}), whole({"data": [MODEL, {}]})),
    ("schema", "error", refusal(), whole({"error": {"message": "no"}})),
    ("no_logprobs", True, says("a"), drawn("a")),
    (
        "greedy_is_likeliest",
        True,
        drawn("a", top={"a": -1, "b": -2}),
        drawn("a", top={"a": -1, "b": -0.5}),
    ),
    (
        "greedy_is_likeliest",
        True,
        in_parts([195], [169], likelihoods=(-1, -1.5)),
        in_parts([195], [169], likelihoods=(-0.5, -1)),
    ),
    ("entry_tokens", True, drawn("a"), says("a")),
    ("entry_tokens", True, drawn(" a"), drawn("a b", text="ab")),
    ("entry_tokens", True, in_parts([195], [169]), in_parts([195], [168])),
    ("entry_tokens", True, drawn("é"), in_parts([195], None)),
    ("event_stream", True, stream(TEXT), says("a")),
    ("done_last", True, stream(TEXT), stream(TEXT, done=0)),
    ("done_last", True, stream(TEXT), stream(TEXT, done=2)),
    ("done_last", True, stream(TEXT), stream("[DONE]", TEXT, done=0)),
    ("role_first", 1, stream(delta(role="assistant"), TEXT), stream(TEXT)),
    ("role_first", 1, stream(delta(role="assistant")), stream(delta(1, role="assistant"))),
    ("one_finish_each", 1, stream(TEXT, END), stream(TEXT)),
    ("one_finish_each", 1, stream(TEXT, END), stream(END, END)),
    ("one_finish_each", 1, stream(END, delta()), stream(END, TEXT)),
    ("one_finish_each", 2, stream(END, delta(1, "stop")), stream(END)),
    ("one_finish_each", 2, stream(delta(1, "stop"), TEXT, END), stream(END, delta(2, "stop"))),
    ("usage_chunk", "last", stream(TEXT, USAGE), stream(USAGE, TEXT)),
    ("usage_chunk", "last", stream(TEXT, USAGE), stream(TEXT)),
    ("usage_chunk", "last", stream(TEXT, USAGE), stream(TEXT, USAGE, USAGE)),
    ("usage_chunk", "last", stream(TEXT, USAGE), stream(TEXT, TEXT | {"usage": {"n": 1}})),
    ("usage_chunk", "none", stream(TEXT | {"usage": None}), stream(TEXT, USAGE)),
    ("one_identity", ["id"], stream({"id": 1}, {"id": 1}), stream({"id": 1}, {"id": 2})),
    ("one_identity", ["id"], stream({"id": 1}), stream({"id": 1}, {})),
    ("begins_early", 0.5, timed(0.4, 1), timed(0.5, 1)),
    ("begins_early", 0.5, timed(0.1, 1), timed(None, 1)),
    ("many_chunks", 2, stream(TEXT, TEXT), stream(TEXT, delta(content=""))),
    (
        "text_in_every_chunk",
        True,
        stream({"choices": [{"index": 0, "text": ""}]}),
        stream({"choices": [{"index": 0, "text": None}]}),
    ),
    ("distinct", 2, says("a", "b", "b"), says("a", "a")),
    ("says", "b", says("abc", "b"), says("abc", "c")),
    ("starts_with", "a", says("ab"), says("ba")),
    ("texts_start_with", ["a", "b"], says("ax", "bx"), says("bx", "ax")),
    ("texts_start_with", ["a"], says("a"), says("a", "a")),
    ("empty_text", True, says(""), says("a")),
    ("empty_text", False, says("a"), says("a", "")),
    ("whole_characters", True, says("naïve"), says("na\ufffdve é")),
    ("whole_characters", True, says("é"), says("naive")),
    ("whole_characters", True, says("\N{GRINNING FACE}"), says("\ud83d é")),
    (
        "whole_characters",
        True,
        stream(delta(content="\N{GRINNING FACE}")),
        stream(delta(content="é \ud83d"), delta(content="\ude00")),
    ),
    (
        "whole_characters",
        True,
        stream(delta(content="caf"), delta(content="é")),
        stream(delta(content="é caf\ufffd"), delta(content="\ufffd")),
    ),
    ("json_text", {"type": "object"}, says("{}"), says("[]")),
    ("json_text", {"type": "object"}, says("{}"), says("{")),
    ("one_of", ["a", "b"], says("a", "b"), says("a", "c")),
]


@pytest.mark.parametrize(("check", "wanted", "good", "bad"), EACH_ROWS)
def test_one_answer(check: str, wanted: Any, good: Exchange, bad: Exchange) -> None:
    EACH[check](good, wanted)
    with pytest.raises(Broken) as caught:
        EACH[check](bad, wanted)
    assert len(str(caught.value)) < 500
    # However good the rest is: an answer that did not come whole is none.
    unfinished = Exchange(good.request, good.status, good.headers, good.text, "it stopped")
    with pytest.raises(Broken, match="it stopped"):
        EACH[check](unfinished, wanted)


ONE, TWO = whole({"n": 1}), whole({"n": 2})
Two = tuple[Exchange, Exchange]
ACROSS_ROWS: list[tuple[str, Two, Two]] = [
    ("same_text", (says("x"), says("x", "x")), (says("x"), says("x", "y"))),
    ("same_text", (says("x"), says("x")), (says(""), says(""))),
    ("different_text", (says("x"), says("y")), (says("x"), says("x"))),
    ("different_text", (says("x"), says("y", "z")), (says("x", "y"), says("z", "y"))),
    ("begins", (says("x"), says("xy")), (says("x"), says("x"))),
    ("begins", (says("x"), says("xy")), (says("y"), says("xy"))),
    ("joined", (stream(TEXT, TEXT), says("aa")), (stream(TEXT), says("aa"))),
    ("joined", (stream(TEXT), says("a")), (stream(delta()), says(""))),
    ("fewer_tokens", (says("x"), says("x", tokens=2)), (says("x"), says("x"))),
    ("richer", (with_ids(1, 1), with_ids(1, 2)), (with_ids(1, 2), with_ids(1, 1))),
    ("equal", (ONE, ONE), (ONE, TWO)),
    ("differ", (ONE, TWO), (ONE, ONE)),
    ("rising", (ONE, TWO), (ONE, ONE)),
    ("rising", (ONE, TWO), (TWO, ONE)),
]


@pytest.mark.parametrize(("check", "good", "bad"), ACROSS_ROWS)
def test_several_answers(check: str, good: Two, bad: Two) -> None:
    wanted = ["a:n", "b:n"] if check in ("equal", "differ", "rising") else ["a", "b"]
    ACROSS[check](dict(zip("ab", good, strict=True)), wanted)
    with pytest.raises(Broken) as caught:
        ACROSS[check](dict(zip("ab", bad, strict=True)), wanted)
    assert len(str(caught.value)) < 500


def test_the_usage_of_a_stream_is_its_last() -> None:
    path = "usage.completion_tokens"
    whole_and_streamed = {"a": stream(TEXT, USAGE), "b": says("a", tokens=1)}
    ACROSS["equal"](whole_and_streamed, [f"a:{path}", f"b:{path}"])
    with pytest.raises(Broken, match=f"there is no {path}"):
        ACROSS["equal"]({"a": stream(TEXT)}, [f"a:{path}"])


def test_connections() -> None:
    one, two = (Exchange(ASKED, 200, connection=number) for number in (1, 2))
    ACROSS["same_connection"]({"a": one, "b": one, "c": two}, ["a", "b"])
    with pytest.raises(Broken, match="3 requests in turn took 2 connections"):
        ACROSS["same_connection"]({"a": one, "b": one, "c": two}, ["a", "b", "c"])


def test_spread_counts_all_choices() -> None:
    exchanges = {"s1": says("a", "b"), "s2": says("b", "c")}
    ACROSS["spread"](exchanges, {"samples": ["s*"], "at_least": 3})
    with pytest.raises(Broken, match="3 distinct texts among 4, not 4"):
        ACROSS["spread"](exchanges, {"samples": ["s*"], "at_least": 4})


def test_most_agree() -> None:
    exchanges = {"s1": says("a"), "s2": says("a", "other"), "s3": says("b")}
    ACROSS["mostly_same_text"](exchanges, {"samples": ["s*"], "at_least": 2})
    with pytest.raises(Broken, match="2 of 3 answers agree, not 3"):
        ACROSS["mostly_same_text"](exchanges, {"samples": ["s*"], "at_least": 3})
    with pytest.raises(Broken, match="the text is empty"):
        ACROSS["mostly_same_text"]({"s": says("")}, {"samples": ["s"], "at_least": 1})


@pytest.mark.parametrize(
    ("full", "cut", "words"),
    [
        ("one two three", "one", None),
        ("two", "", None),
        ("one two", "one ", "instead of"),
        ("one two", "one two", "instead of"),
        ("nine", "nine", "the full answer has none of"),
    ],
)
def test_cut_at_the_first_stop(full: str, cut: str, words: str | None) -> None:
    wanted = {"full": "f", "cut": "c", "stop": ["th", "two", " two"]}
    exchanges = {"f": says(full), "c": says(cut)}
    if words is None:
        ACROSS["cut_at"](exchanges, wanted)
    else:
        with pytest.raises(Broken, match=words):
            ACROSS["cut_at"](exchanges, wanted)


@pytest.mark.parametrize(
    ("shown", "hidden", "words"),
    [
        ("one two<|end|> three", "one two three", None),
        ("one two</s>", "one two", None),
        ("one two [INST] x", "one two x", None),
        ("one two three", "one two three", "no special token is shown"),
        # One of the answer itself says nothing of those that are skipped.
        ("one <b> two", "one", None),
        ("one two", "one two", "no special token is shown"),
        ("one two<|end|>", "one two<|end|>", "<|end|> is not skipped"),
        ("one two<|end|>", "", "the text is empty"),
    ],
)
def test_what_is_hidden_is_revealed(shown: str, hidden: str, words: str | None) -> None:
    exchanges = {"p": says("one two"), "s": says(shown), "h1": says("one two"), "h2": says(hidden)}
    wanted = {"plain": "p", "shown": "s", "hidden": ["h*"]}
    if words is None:
        ACROSS["reveals"](exchanges, wanted)
    else:
        with pytest.raises(Broken, match=re.escape(words)):
            ACROSS["reveals"](exchanges, wanted)


def test_a_token_of_the_plain_answer_reveals_nothing() -> None:
    exchanges = {"p": says("a <b> c"), "s": says("a <b> c d"), "h": says("a <b> c d")}
    with pytest.raises(Broken, match="no special token is shown"):
        ACROSS["reveals"](exchanges, {"plain": "p", "shown": "s", "hidden": ["h"]})


@pytest.mark.parametrize("others", [[], ["b"]])
def test_what_a_model_cannot_show_breaks_nothing(others: list[str]) -> None:
    """Not even under the name of one of several answers."""
    exchanges = dict.fromkeys(["a", *others], says("naive"))
    with pytest.raises(Unsuitable, match="the text is ASCII alone"):
        judge("x/y", [{"whole_characters": True}], exchanges)
    with pytest.raises(Broken) as caught:
        judge("x/y", [{"whole_characters": True}], dict.fromkeys(exchanges, says("\ufffd")))
    assert not isinstance(caught.value, Unsuitable)


@pytest.mark.parametrize(
    ("check", "wanted"),
    [
        ("schema", "chat-chunk"),
        ("usage_chunk", "none"),
        ("text_in_every_chunk", True),
        ("one_identity", ["id"]),
        ("one_finish_each", 0),
        ("choices", 0),
    ],
)
@pytest.mark.parametrize("text", ["", "data: {}", "data: [DONE]\n\n", ": ping\n\n", "{}"])
def test_a_stream_without_a_chunk_is_none(check: str, wanted: Any, text: str) -> None:
    """Nothing wrong is in it, and nothing right."""
    with pytest.raises(Broken):
        EACH[check](Exchange(STREAMED, 200, {}, text), wanted)


def test_an_error_of_null_is_none() -> None:
    EACH["says"](stream(TEXT | {"error": None}), "a")
    with pytest.raises(Broken, match="the stream ended with an error"):
        EACH["says"](stream(TEXT, {"error": {"message": "no"}}), "a")


def test_running() -> None:
    for count, is_busy in ((0, False), (2, True)):
        metrics = whole(f'tenuto_engine_unfinished_requests{{model="a"}} {count}\n')
        EACH["running"](metrics, is_busy)
        with pytest.raises(Broken, match=r"a request (runs|does not run) after"):
            EACH["running"](metrics, not is_busy)


def test_a_tool_is_called_once() -> None:
    def calls(*functions: dict[str, Any]) -> Exchange:
        called = [{"function": function} for function in functions]
        return whole({"choices": [{"index": 0, "message": {"tool_calls": called}}]})

    EACH["tool_call"](calls({"name": "f", "arguments": '{"a":'}, {"arguments": " 1}"}), "f")
    for bad in (calls(), calls({"name": "g", "arguments": "{}"}), calls({"name": "f"})):
        with pytest.raises(Broken):
            EACH["tool_call"](bad, "f")
    for arguments in ("{", "[]"):
        with pytest.raises(Broken, match="the arguments are"):
            EACH["tool_call"](calls({"name": "f", "arguments": arguments}), "f")


def test_star_with_credentials() -> None:
    allow = {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}
    EACH["cors_is_usable"](whole({}, headers={"access-control-allow-origin": "*"}), True)
    EACH["cors_is_usable"](whole({}, headers=allow | {"access-control-allow-origin": "x"}), True)
    with pytest.raises(Broken):
        EACH["cors_is_usable"](whole({}, headers=allow), True)
