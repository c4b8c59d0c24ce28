"""Counting and tokens. Counts come from the code that renders for generation."""

from starlette.requests import Request
from starlette.responses import Response

from tenuto.api.body import ignored_header, json_response, wire_request
from tenuto.api.exchange import exchange_of
from tenuto.api.services import Services, policy_of
from tenuto.engine.types import Prompt, Task, TextPrompt
from tenuto.errors import BadRequest
from tenuto.generation.endpoint import admit_chat, render_chat, render_text
from tenuto.models.registry import Entry, Target
from tenuto.wire.judge import judge_batch, judge_messages, judge_template
from tenuto.wire.requests import (
    ChatRequest,
    CompletionRequest,
    CounterRequest,
    DetokenizeRequest,
    Message,
    TokenizeRequest,
)
from tenuto.wire.responses import Text, TokenCount, Tokens
from tenuto.wire.tools import judge_tools


class TokenRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def token_counter(self, request: Request) -> Response:
        route = "/utils/token_counter"
        wire = await wire_request(request, CounterRequest, route, self._services)
        target = self._target(request, wire.model, route, wire.messages)
        entry = target.entry
        _require_one(wire.prompt, wire.messages)
        prompts = await self._services.pool.prompts(entry)
        if wire.prompt is not None:
            judge_batch(wire.prompt, self._services.bounds.prompts)
            text = CompletionRequest.model_construct(model=wire.model, prompt=wire.prompt)
            rendered = await render_text(text, prompts, policy_of(entry), bounded=False)
        else:
            chat = ChatRequest.model_construct(
                model=wire.model, messages=wire.messages or [], tools=wire.tools
            )
            rendered = [await self._chat(chat, entry)]
        total = sum(len(prompt.token_ids) for prompt in rendered)
        return json_response(TokenCount(total, wire.model, target.source_id), ignored_header(wire))

    async def tokenize(self, request: Request) -> Response:
        wire = await wire_request(request, TokenizeRequest, "/tokenize", self._services)
        entry = self._target(request, wire.model, "/tokenize", wire.messages).entry
        _require_one(wire.prompt, wire.messages)
        judge_template(None, wire.chat_template_kwargs, self._services.bounds)
        prompts = await self._services.pool.prompts(entry)
        if wire.prompt is not None:
            text = TextPrompt(wire.prompt, wire.add_special_tokens is not False)
            rendered = await prompts.text(text, bounded=False)
        else:
            chat = ChatRequest.model_construct(
                model=wire.model,
                messages=wire.messages or [],
                tools=wire.tools,
                add_special_tokens=wire.add_special_tokens,
                add_generation_prompt=wire.add_generation_prompt,
                continue_final_message=wire.continue_final_message,
                chat_template_kwargs=wire.chat_template_kwargs,
            )
            rendered = await self._chat(chat, entry)
        ids = rendered.token_ids
        strings = await prompts.token_strings(ids) if wire.return_token_strs else None
        answer = Tokens(len(ids), prompts.facts.max_model_len, ids, strings)
        return json_response(answer, ignored_header(wire))

    async def detokenize(self, request: Request) -> Response:
        wire = await wire_request(request, DetokenizeRequest, "/detokenize", self._services)
        entry = self._target(request, wire.model, "/detokenize").entry
        prompts = await self._services.pool.prompts(entry)
        text = await prompts.detokenize(wire.tokens)
        return json_response(Text(text), ignored_header(wire))

    def _target(
        self, request: Request, name: str, route: str, messages: list[Message] | None = None
    ) -> Target:
        """Only models that generate have a chat template."""
        exchange = exchange_of(request)
        task: Task | None = None if messages is None else "generate"
        target = self._services.target(name, route, task, key=exchange.key)
        exchange.model = target.id
        return target

    async def _chat(self, chat: ChatRequest, entry: Entry) -> Prompt:
        judge_messages(chat.messages, self._services.bounds)
        judge_tools(chat.tools, None, self._services.bounds)
        # Counting needs no tool_parser: every tool_choice renders the same.
        chat.tool_choice = "none"
        admit_chat(chat, policy_of(entry))
        prompts = await self._services.pool.prompts(entry)
        rendered = await render_chat(chat, prompts, policy_of(entry), bounded=False)
        return rendered[0]


def _require_one(prompt: object | None, messages: list[Message] | None) -> None:
    if prompt is None and messages is None:
        raise BadRequest("prompt or messages must be provided.", param="prompt")
    if prompt is not None and messages is not None:
        raise BadRequest("prompt and messages must not both be provided.", param="messages")
