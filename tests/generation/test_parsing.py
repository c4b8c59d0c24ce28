"""Content, reasoning and calls told apart, however the text is cut."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tenuto.engine.types import AnswerParser, Delta, Parsed, Prompt, Step, ToolCall
from tenuto.generation.answer import Head, chat_answer
from tenuto.generation.fold import Choice, Folded
from tenuto.generation.frames import ChatFrames
from tenuto.generation.parsing import Chained, FirstCall, NamedCall, RequiredCalls, answer_parser
from tests.building import plan
from tests.sse import choices_of, events

TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"tools": [TOOL], "tool_choice": TOOL}
REQUIRED = {"tools": [TOOL], "tool_choice": "required"}
CALLS = '[{"name": "f", "parameters": {"a": "é}{ \\" ]"}}, {"name":"f","parameters":{ }}]'
EXPECTED = [("f", '{"a": "é}{ \\" ]"}'), ("f", "{ }")]
HEAD = Head("id-1", 1700000000, "demo")


@dataclass
class Thinking:
    """Stands for a model's own parser: what is before the bar is reasoning."""

    ended: bool = False

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        if self.ended:
            return Parsed(text)
        reasoning, bar, content = text.partition("|")
        self.ended = bool(bar)
        return Parsed(content, reasoning)

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        return Thinking().feed(text, token_ids, finished=True)


@dataclass
class Calling:
    """Stands for a model's own parser that finds two calls."""

    ids: list[str | None] = field(default_factory=lambda: ["x", "y"])

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        name = "f" if self.ids[0] else None
        calls = [ToolCall(index, text, id_, name) for index, id_ in enumerate(self.ids)]
        self.ids = [None, None]
        return Parsed(tool_calls=calls)

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        return Calling().feed(text, token_ids, finished=True)


def gathered(parts: list[Parsed]) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning, and name and arguments of each call, as a client adds them up."""
    calls: dict[int, tuple[str, str]] = {}
    for part in parts:
        for call in part.tool_calls:
            name, arguments = calls.get(call.index, ("", ""))
            assert (call.id is None) == (call.name is None) == bool(name)
            calls[call.index] = (name + (call.name or ""), arguments + call.arguments)
    assert list(calls) == list(range(len(calls)))
    content, reasoning = (
        "".join(getattr(p, key) for p in parts) for key in ("content", "reasoning")
    )
    return content, reasoning, list(calls.values())


def fed(parser: AnswerParser, text: str, cuts: Sequence[int]) -> list[Parsed]:
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    return [parser.feed(p, [], finished=i == len(pieces) - 1) for i, p in enumerate(pieces)]


def every_cut(text: str) -> list[list[int]]:
    """Whole, in characters, and in two and three pieces."""
    middle = len(text) // 2
    one = [[cut] for cut in range(len(text))]
    two = [sorted([cut, middle]) for cut in range(len(text))]
    return [[], list(range(1, len(text))), *one, *two]


def test_named_call_is_the_text() -> None:
    text = '{"city": "Zürich"}'
    for cuts in every_cut(text):
        assert gathered(fed(NamedCall("f"), text, cuts)) == ("", "", [("f", text)])
    assert gathered([NamedCall("f").whole(text, [])]) == ("", "", [("f", text)])


def test_required_calls_come_whole_and_as_written() -> None:
    for cuts in every_cut(CALLS):
        assert gathered(fed(RequiredCalls(), CALLS, cuts)) == ("", "", EXPECTED)
    assert gathered([RequiredCalls().whole(CALLS, [])]) == ("", "", EXPECTED)


def test_required_calls_come_as_soon_as_they_can() -> None:
    first = CALLS.index("}}") + 2
    parser = RequiredCalls()
    assert parser.feed(CALLS[: first - 1], [], finished=False).tool_calls == []
    assert len(parser.feed(CALLS[first - 1 : first], [], finished=False).tool_calls) == 1
    assert len(parser.feed(CALLS[first:], [], finished=True).tool_calls) == 1


@pytest.mark.parametrize("length", range(len(CALLS)))
def test_calls_that_were_cut_off_are_left_out(length: int) -> None:
    _, _, calls = gathered([RequiredCalls().whole(CALLS[:length], [])])
    assert calls == EXPECTED[: len(calls)]
    assert len(calls) < 2 or CALLS[:length].endswith("}}")


def test_numbers_stay_as_the_model_wrote_them() -> None:
    text = '[{"name": "f", "parameters": {"a": 1e999, "b": 1.50, "c": 12345678901234567890}}]'
    [(_, arguments)] = gathered([RequiredCalls().whole(text, [])])[2]
    assert arguments == '{"a": 1e999, "b": 1.50, "c": 12345678901234567890}'


def test_arguments_nested_too_deeply_are_left_out() -> None:
    deep = f'[{{"name": "f", "parameters": {{"a": {"[" * 5000}{"]" * 5000}}}}}]'
    assert gathered([RequiredCalls().whole(deep, [])]) == ("", "", [])


@pytest.mark.parametrize(
    "parser", [NamedCall("f"), RequiredCalls(), Chained(Thinking(), NamedCall("f"))]
)
def test_no_text_is_no_call(parser: AnswerParser) -> None:
    assert gathered([parser.feed("", [], finished=True)]) == ("", "", [])


def test_chained() -> None:
    text = f"so|{CALLS}"
    for cuts in every_cut(text):
        parser = Chained(Thinking(), RequiredCalls())
        assert gathered(fed(parser, text, cuts)) == ("", "so", EXPECTED)
    assert gathered([Chained(Thinking(), RequiredCalls()).whole(text, [])]) == ("", "so", EXPECTED)


def test_first_call_alone() -> None:
    parts = fed(FirstCall(Calling()), "abc", [1])
    assert [call.index for part in parts for call in part.tool_calls] == [0, 0]
    assert gathered(parts) == ("", "", [("f", "abc")])
    assert gathered([FirstCall(Calling()).whole("abc", [])]) == ("", "", [("f", "abc")])


@pytest.mark.parametrize(
    ("fields", "own", "kind"),
    [
        ({}, None, None),
        ({}, Thinking, Thinking),
        ({"parallel_tool_calls": False}, None, None),
        ({"tools": [TOOL], "parallel_tool_calls": False}, Calling, FirstCall),
        (NAMED, None, NamedCall),
        (REQUIRED, None, RequiredCalls),
        (REQUIRED, Thinking, Chained),
        ({**REQUIRED, "parallel_tool_calls": False}, Thinking, Chained),
    ],
)
def test_who_parses(fields: dict[str, Any], own: Any, kind: Any) -> None:
    parser = answer_parser(plan("chat", **fields), Prompt([1], parser=own))
    assert type(parser) is (kind or type(None))


def answered(text: str, finish: str, own: Any, **fields: Any) -> dict[str, Any]:
    choice = Choice(0, text, [7], finish_reason=finish)  # type: ignore[arg-type]
    folded, prompts = Folded({0: choice}), [Prompt([1], parser=own)]
    answer, _ = chat_answer(HEAD, folded, prompts, plan("chat", **fields))
    found: dict[str, Any] = msgspec.to_builtins(answer)["choices"][0]
    return found


def streamed(text: str, finish: str, own: Any, **fields: Any) -> list[dict[str, Any]]:
    frames = ChatFrames(HEAD, [Prompt([1], parser=own)], plan("chat", stream=True, **fields))
    deltas = [Delta(0, character, [7]) for character in text]
    deltas.append(Delta(0, "", [], finish))  # type: ignore[arg-type]
    body = b"".join(frames.step(Step([delta])) for delta in deltas)
    return choices_of(events(body.decode()))


each_finish = pytest.mark.parametrize(
    ("fields", "text", "finish", "told"),
    [
        (REQUIRED, CALLS, "stop", "tool_calls"),
        (REQUIRED, CALLS, "length", "length"),
        (REQUIRED, "[", "length", "length"),
        (NAMED, "{}", "stop", "stop"),
        (NAMED, "{", "length", "length"),
        ({}, "Hi", "stop", "stop"),
    ],
)


@each_finish
def test_finish_reasons(fields: dict[str, Any], text: str, finish: str, told: str) -> None:
    assert answered(text, finish, None, **fields)["finish_reason"] == told
    reasons = [chunk["finish_reason"] for chunk in streamed(text, finish, None, **fields)]
    assert reasons == [None] * (len(reasons) - 1) + [told]


def test_calls_in_an_answer() -> None:
    message = answered(f"so|{CALLS}", "stop", Thinking, **REQUIRED)["message"]
    ids = [call.pop("id") for call in message["tool_calls"]]
    assert len({*ids}) == 2
    assert all(ids)
    assert message == {
        "role": "assistant",
        "content": None,
        "reasoning": "so",
        "reasoning_content": "so",
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in EXPECTED
        ],
    }
    assert json.loads(EXPECTED[0][1]) == {"a": 'é}{ " ]'}


def test_calls_in_a_stream() -> None:
    deltas = [chunk["delta"] for chunk in streamed('so|{"a": 1}', "stop", Thinking, **NAMED)]
    thoughts = [delta for delta in deltas if "reasoning" in delta]
    assert thoughts == [{"reasoning": c, "reasoning_content": c} for c in "so"]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    opening, *rest = calls
    assert opening["id"]
    assert (opening["type"], opening["function"]["name"], opening["index"]) == ("function", "f", 0)
    assert all(call == {"index": 0, "function": call["function"]} for call in rest)
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1}'
    assert not any("content" in delta for delta in deltas)
