"""Tool calls and reasoning out of a model's text, by vLLM's parsers.

They take vLLM's own request object: it is built here, and only for a model that has a parser.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.parser.abstract_parser import Parser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tokenizers import TokenizerLike

from tenuto.engine.types import ChatPrompt, Parsed, Prompt, ToolCall

# They log what they cannot parse, and answers are in no log.
for name in ("vllm.parser", "vllm.reasoning", "vllm.tool_parsers"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class Parsers:
    """The parsers of one model. A name that vLLM does not know fails at construction."""

    def __init__(
        self,
        model: ModelConfig,
        tokenizer: TokenizerLike,
        tool_parser: str | None,
        reasoning_parser: str | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._both = _parser_class(tokenizer, tool_parser, reasoning_parser)
        self._reasoning = _parser_class(tokenizer, None, reasoning_parser)

    def of(self, chat: ChatPrompt) -> "ChatParsers | None":
        """`chat.tools` are those that the model may call of its own accord."""
        chosen = self._both if chat.tools and chat.parse_tools else self._reasoning
        if chosen is None:
            return None
        request = _request(chat)
        arguments = {"chat_template_kwargs": dict(chat.template_kwargs)}

        def make() -> Parser:
            return chosen(self._tokenizer, request.tools, model_config=self._model, **arguments)

        first = make()
        return ChatParsers(make, first.adjust_request(request), _reasoning_end(first))


class ChatParsers:
    """Makes one parser per choice. Some parsers need the special tokens in the text."""

    def __init__(
        self,
        make: Callable[[], Parser],
        request: ChatCompletionRequest,
        reasoning_ended: Callable[[list[int]], bool],
    ) -> None:
        self._make = make
        self._request = request
        self._reasoning_ended = reasoning_ended

    def attached(self, prompt: Prompt) -> Prompt:
        """`prompt` with what tells its answers' parts apart."""
        token_ids = prompt.token_ids
        return replace(
            prompt,
            parser=lambda: VllmParser(self._make, self._request, token_ids),
            keep_special_tokens=not self._request.skip_special_tokens,
            reasoning_ended=self._reasoning_ended(token_ids),
            template_kwargs=self._request.chat_template_kwargs or {},
        )


class VllmParser:
    """`tenuto.engine.types.AnswerParser` for one choice."""

    def __init__(
        self,
        make: Callable[[], Parser],
        request: ChatCompletionRequest,
        prompt_token_ids: list[int],
    ) -> None:
        self._make = make
        self._parser = make()
        self._request = request
        self._prompt_token_ids = prompt_token_ids
        self._text = ""
        self._token_ids: list[int] = []
        self._told = Parsed()

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        self._text += text
        self._token_ids += token_ids
        parsed = Parsed()
        for piece, ids, is_last in self._pieces(text, token_ids):
            told = self._fed(piece, ids, finished and is_last)
            parsed, self._told = _joined(parsed, told), _joined(self._told, told)
        if not finished:
            return parsed
        # Fed in few large pieces, vLLM's parsers lose calls and arguments.
        return _joined(parsed, _untold(self.whole(self._text, self._token_ids), self._told))

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        parser = self._make()
        parser.set_prompt_token_ids(self._prompt_token_ids)
        reasoning, content, functions = parser.parse(
            text, self._request, enable_auto_tools=True, model_output_token_ids=list(token_ids)
        )
        calls = [
            ToolCall(index, function.arguments, function.id or make_tool_call_id(), function.name)
            for index, function in enumerate(functions or ())
        ]
        return Parsed(content or "", reasoning or "", calls)

    def _pieces(self, text: str, token_ids: Sequence[int]) -> list[tuple[str, Sequence[int], bool]]:
        """The last one is marked. vLLM's parsers take the mark at which reasoning begins for a part
        of it when more comes with the mark."""
        parser: Any = self._parser.reasoning_parser
        mark: Any = getattr(parser, "start_token", None)
        mark_id: Any = getattr(parser, "start_token_id", None)
        is_marked = mark is not None and mark in text and mark_id in token_ids
        if not is_marked or len(token_ids) == 1:
            return [(text, token_ids, True)]
        before, _, after = text.partition(mark)
        split = list(token_ids).index(mark_id) + 1
        return [(before + mark, token_ids[:split], False), (after, token_ids[split:], True)]

    def _fed(self, text: str, token_ids: Sequence[int], finished: bool) -> Parsed:
        delta = self._parser.parse_delta(
            text,
            list(token_ids),
            self._request,
            prompt_token_ids=self._prompt_token_ids,
            finished=finished,
        )
        if delta is None:
            return Parsed()
        known = {call.index for call in self._told.tool_calls}
        calls = []
        for call in delta.tool_calls or ():
            # Arguments of a call that has not been named yet are told with its name, at the end.
            if call.function.name or call.index in known:
                known.add(call.index)
                calls.append(_tool_call(call))
        return Parsed(delta.content or "", delta.reasoning or "", calls)


def _joined(first: Parsed, second: Parsed) -> Parsed:
    return Parsed(
        first.content + second.content,
        first.reasoning + second.reasoning,
        [*first.tool_calls, *second.tool_calls],
    )


def _untold(whole: Parsed, told: Parsed) -> Parsed:
    """What of `whole` is not in `told`, as far as one goes on where the other ends."""
    calls = []
    for call in whole.tool_calls:
        pieces = [piece for piece in told.tool_calls if piece.index == call.index]
        if not pieces:
            calls.append(call)
        elif rest := _rest(call.arguments, "".join(piece.arguments for piece in pieces)):
            calls.append(ToolCall(call.index, rest))
    return Parsed(_rest(whole.content, told.content), _rest(whole.reasoning, told.reasoning), calls)


def _rest(whole: str, told: str) -> str:
    return whole[len(told) :] if whole.startswith(told) else ""


def _reasoning_end(parser: Parser) -> Callable[[list[int]], bool]:
    """Whether nothing of a prompt's reasoning is left to come."""
    if parser.reasoning_parser is None:
        return lambda token_ids: True
    return lambda token_ids: bool(parser.is_reasoning_end(token_ids))


def _parser_class(
    tokenizer: TokenizerLike, tool_parser: str | None, reasoning_parser: str | None
) -> Any:
    return ParserManager.get_parser(
        tool_parser_name=tool_parser,
        reasoning_parser_name=reasoning_parser,
        enable_auto_tools=tool_parser is not None,
        tokenizer=tokenizer,
    )


def _request(chat: ChatPrompt) -> ChatCompletionRequest:
    tools = [_tool(tool["function"]) for tool in chat.tools] if chat.parse_tools else []
    return ChatCompletionRequest(
        messages=[{"role": "assistant", "content": "", "tool_calls": _earlier_calls(chat)}],
        tools=tools or None,
        tool_choice="auto" if tools else "none",
        chat_template_kwargs=dict(chat.template_kwargs),
    )


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    known = ("name", "description", "parameters")
    return {"type": "function", "function": {k: function[k] for k in known if k in function}}


def _earlier_calls(chat: ChatPrompt) -> list[dict[str, Any]]:
    """Of the messages, parsers only want to know the number of calls so far."""
    number = sum(len(message.get("tool_calls") or ()) for message in chat.messages)
    function = {"name": "", "arguments": ""}
    return [{"id": "", "type": "function", "function": function} for _ in range(number)]


def _tool_call(call: Any) -> ToolCall:
    function = call.function
    return ToolCall(call.index, function.arguments or "", call.id, function.name)
