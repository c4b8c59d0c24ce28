"""Tool calls and reasoning out of a model's text, by vLLM's parsers.

They take vLLM's own request object: it is built here, and only for a model that has a parser.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.parser.abstract_parser import Parser
from vllm.tokenizers import TokenizerLike

from tenuto.engine.types import AnswerParser, ChatPrompt, Parsed, ToolCall


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

        return ChatParsers(make, make().adjust_request(request))


class ChatParsers:
    """Makes one parser per choice. Some parsers need the special tokens in the text."""

    def __init__(self, make: Callable[[], Parser], request: ChatCompletionRequest) -> None:
        self._make = make
        self._request = request
        self.keep_special_tokens = not request.skip_special_tokens

    def for_prompt(self, token_ids: list[int]) -> Callable[[], AnswerParser]:
        return lambda: VllmParser(self._make(), self._request, token_ids)


class VllmParser:
    """`tenuto.engine.types.AnswerParser` for one choice."""

    def __init__(
        self, parser: Parser, request: ChatCompletionRequest, prompt_token_ids: list[int]
    ) -> None:
        self._parser = parser
        self._request = request
        self._prompt_token_ids = prompt_token_ids

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed:
        delta = self._parser.parse_delta(
            text,
            list(token_ids),
            self._request,
            prompt_token_ids=self._prompt_token_ids,
            finished=finished,
        )
        if delta is None:
            return Parsed()
        calls = [_tool_call(call, call.index) for call in delta.tool_calls or ()]
        return Parsed(delta.content or "", delta.reasoning or "", calls)

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed:
        self._parser.set_prompt_token_ids(self._prompt_token_ids)
        reasoning, content, functions = self._parser.parse(
            text, self._request, enable_auto_tools=True, model_output_token_ids=list(token_ids)
        )
        calls = [
            ToolCall(index, function.arguments, function.id, function.name)
            for index, function in enumerate(functions or ())
        ]
        return Parsed(content or "", reasoning or "", calls)


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
    tools = list(chat.tools) if chat.parse_tools else []
    return ChatCompletionRequest(
        messages=chat.messages,
        tools=tools or None,
        tool_choice="auto" if tools else "none",
        chat_template_kwargs=dict(chat.template_kwargs),
    )


def _tool_call(call: Any, index: int) -> ToolCall:
    function = call.function
    return ToolCall(index, function.arguments or "", call.id, function.name)
