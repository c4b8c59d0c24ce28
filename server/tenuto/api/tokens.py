"""Counting and tokens. Counts come from the code that renders for generation."""

from starlette.requests import Request
from starlette.responses import Response

from tenuto.api.body import ignored_header, json_response, wire_request
from tenuto.api.exchange import exchange_of
from tenuto.api.services import Services
from tenuto.engine.base import Prompts
from tenuto.engine.types import Prompt, TextPrompt
from tenuto.errors import BadRequest
from tenuto.generation.endpoint import render_chat
from tenuto.models.registry import Entry
from tenuto.wire.judge import judge_messages, judge_template
from tenuto.wire.requests import (
    ChatRequest,
    CounterRequest,
    DetokenizeRequest,
    Message,
    TokenizeRequest,
)
from tenuto.wire.responses import Text, TokenCount, Tokens


class TokenRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def token_counter(self, request: Request) -> Response:
        route = "/utils/token_counter"
        wire = await wire_request(request, CounterRequest, route, self._services)
        entry = self._entry(request, wire.model, route)
        _require_one(wire.prompt, wire.messages)
        prompts = await self._services.pool.prompts(entry)
        chat = ChatRequest.model_construct(model=wire.model, messages=wire.messages or [])
        rendered = await self._render(wire.prompt, chat, prompts, entry)
        count = TokenCount(len(rendered.token_ids), wire.model, entry.source_id)
        return json_response(count, ignored_header(wire))

    async def tokenize(self, request: Request) -> Response:
        wire = await wire_request(request, TokenizeRequest, "/tokenize", self._services)
        entry = self._entry(request, wire.model, "/tokenize")
        _require_one(wire.prompt, wire.messages)
        judge_template(None, wire.chat_template_kwargs, self._services.bounds)
        prompts = await self._services.pool.prompts(entry)
        chat = ChatRequest.model_construct(
            model=wire.model,
            messages=wire.messages or [],
            add_special_tokens=wire.add_special_tokens,
            add_generation_prompt=wire.add_generation_prompt,
            continue_final_message=wire.continue_final_message,
            chat_template_kwargs=wire.chat_template_kwargs,
        )
        rendered = await self._render(
            wire.prompt, chat, prompts, entry, wire.add_special_tokens is not False
        )
        ids = rendered.token_ids
        strings = await prompts.token_strings(ids) if wire.return_token_strs else None
        answer = Tokens(len(ids), prompts.facts.max_model_len, ids, strings)
        return json_response(answer, ignored_header(wire))

    async def detokenize(self, request: Request) -> Response:
        wire = await wire_request(request, DetokenizeRequest, "/detokenize", self._services)
        entry = self._entry(request, wire.model, "/detokenize")
        prompts = await self._services.pool.prompts(entry)
        text = await prompts.detokenize(wire.tokens)
        return json_response(Text(text), ignored_header(wire))

    def _entry(self, request: Request, name: str, route: str) -> Entry:
        entry = self._services.entry(name, route)
        exchange_of(request).model = entry.id
        return entry

    async def _render(
        self,
        text: str | None,
        chat: ChatRequest,
        prompts: Prompts,
        entry: Entry,
        add_special_tokens: bool = True,
    ) -> Prompt:
        if text is not None:
            return await prompts.text(TextPrompt(text, add_special_tokens), bounded=False)
        judge_messages(chat.messages, self._services.bounds)
        rendered = await render_chat(chat, prompts, entry.system_prompt, bounded=False)
        return rendered[0]


def _require_one(prompt: str | None, messages: list[Message] | None) -> None:
    if prompt is None and messages is None:
        raise BadRequest("prompt or messages must be provided.", param="prompt")
    if prompt is not None and messages is not None:
        raise BadRequest("prompt and messages must not both be provided.", param="messages")
