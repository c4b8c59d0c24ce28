"""Content, reasoning and tool calls told apart: by the model's parser, or ours for forced calls."""

import json
import uuid
from collections.abc import Sequence

from tenuto.engine.types import AnswerParser, Parsed, Prompt, ToolCall
from tenuto.generation.translate import Plan
from tenuto.wire.tools import NamedTool


def answer_parser(plan: Plan, prompt: Prompt) -> AnswerParser | None:
    """A new parser for one choice; None where all text is content."""
    own = prompt.parser() if prompt.parser is not None else None
    forced = forced_parser(plan.forced_choice)
    if own is not None and forced is not None:
        return Chained(own, forced)
    return FirstCall(own) if own is not None and plan.single_call else forced or own


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class NamedCall:
    """The whole text is the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        if not text:
            return Parsed()
        if self._name is None:
            return Parsed(tool_calls=[ToolCall(0, text)])
        opening = ToolCall(0, text, call_id(), self._name)
        self._name = None
        return Parsed(tool_calls=[opening])

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        return self.feed(text, token_ids, finished=True)


class RequiredCalls:
    """Each element of the array becomes a call as soon as it is whole, worded as the model did."""

    def __init__(self) -> None:
        self._text = ""
        self._calls = 0
        self._position = 0

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        self._text += text
        calls: list[ToolCall] = []
        if "}" not in text:
            return Parsed()
        while (found := self._next_element()) is not None:
            name, arguments = found
            calls.append(ToolCall(self._calls, arguments, call_id(), name))
            self._calls += 1
        return Parsed(tool_calls=calls)

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        return self.feed(text, token_ids, finished=True)

    def _next_element(self) -> tuple[str, str] | None:
        """Name and arguments of the next whole object; None when it has not arrived yet."""
        start = self._text.find("{", self._position)
        if start < 0:
            return None
        try:
            element, self._position = json.JSONDecoder().raw_decode(self._text, start)
        except (json.JSONDecodeError, RecursionError):
            return None
        # The schema has the name first, and names hold no braces.
        arguments = self._text[self._text.index("{", start + 1) : self._position - 1]
        return str(element["name"]), arguments.rstrip()


class Chained:
    """A reasoning parser first; what it takes for content goes to the second parser."""

    def __init__(self, first: AnswerParser, second: AnswerParser) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        parsed = self._first.feed(text, token_ids, finished=finished)
        return self._second_of(parsed, finished) if parsed.content or finished else parsed

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        return self._second_of(self._first.whole(text, token_ids), True)

    def _second_of(self, parsed: Parsed, finished: bool) -> Parsed:
        inner = self._second.feed(parsed.content, (), finished=finished)
        return Parsed(inner.content, parsed.reasoning, inner.tool_calls)


class FirstCall:
    """What `parallel_tool_calls: false` leaves of a parser's calls."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        return _first_call(self._parser.feed(text, token_ids, finished=finished))

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        return _first_call(self._parser.whole(text, token_ids))


def _first_call(parsed: Parsed) -> Parsed:
    first = [call for call in parsed.tool_calls if call.index == 0]
    return Parsed(parsed.content, parsed.reasoning, first)


def forced_parser(choice: object) -> AnswerParser | None:
    """The parser of a forced tool choice; None for any other."""
    if isinstance(choice, NamedTool):
        return NamedCall(choice.function.name)
    return RequiredCalls() if choice == "required" else None
