"""Rendering, counting and decoding with vLLM's own renderer, without an engine or weights."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from vllm.config import ModelConfig, VllmConfig
from vllm.inputs import TextPrompt as VllmText
from vllm.inputs import TokensPrompt
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.registry import renderer_from_config

from tenuto.engine.types import ChatPrompt, EngineSpec, ModelFacts, Prompt, TextPrompt
from tenuto.engine.vllm_errors import translated
from tenuto.engine.vllm_parsers import Parsers

T = TypeVar("T")
# Characters, or tokens: about half a millisecond's.
SHORT = 2048


class _Rendering:
    """In threads what is long: it would keep everybody else waiting. What is short is done at
    once, since the way there and back costs more, unless a thread is at it: a tokenizer cannot be
    used by two at a time (it says "Already borrowed")."""

    def __init__(self) -> None:
        self._running = 0

    async def of(
        self, is_short: bool, now: Callable[[], T], in_threads: Callable[[], Awaitable[T]]
    ) -> T:
        if is_short and not self._running:
            return now()
        self._running += 1
        work = asyncio.ensure_future(in_threads())
        work.add_done_callback(self._ended)
        # A thread goes on when nobody waits for it.
        return await asyncio.shield(work)

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._running -= 1
        if not work.cancelled():
            # Said to whoever waited, and no news when nobody does.
            work.exception()


class VllmPrompts:
    """`tenuto.engine.base.Prompts` for one model."""

    def __init__(self, config: VllmConfig, spec: EngineSpec) -> None:
        model = config.model_config
        self.facts = ModelFacts(
            max_model_len=model.max_model_len,
            vocab_size=model.get_vocab_size(),
            quantization=model.quantization,
            dimensions=_dimensions(model) if spec.task == "embed" else (),
        )
        self._renderer = renderer_from_config(config)
        self._rendering = _Rendering()
        self._chat_template = spec.chat_template
        self._parsers = Parsers(
            model, self._renderer.get_tokenizer(), spec.tool_parser, spec.reasoning_parser
        )

    async def chat(self, chat: ChatPrompt, *, bounded: bool = True) -> Prompt:
        params = ChatParams(
            chat_template=self._chat_template,
            chat_template_kwargs={
                **chat.template_kwargs,
                "tools": list(chat.tools) or None,
                "add_generation_prompt": chat.add_generation_prompt,
                "continue_final_message": chat.continue_final_message,
                # Special tokens are added when text is tokenized, and not by the template.
                "tokenize": not chat.add_special_tokens,
            },
        )
        with translated("messages"):
            tokenize = self._tokenize_params(chat, self._renderer.default_chat_tok_params, bounded)
            _, rendered = await self._rendering.of(
                _is_short(chat),
                partial(self._renderer.render_chat, [chat.messages], params, tokenize),
                partial(self._renderer.render_chat_async, [chat.messages], params, tokenize),
            )
            parsers = self._parsers.of(chat)
        prompt = Prompt(rendered[0]["prompt_token_ids"], rendered[0].get("prompt"))
        return prompt if parsers is None else parsers.attached(prompt)

    async def text(self, text: TextPrompt, *, bounded: bool = True) -> Prompt:
        with translated(text.param):
            tokenize = self._tokenize_params(text, self._renderer.default_cmpl_tok_params, bounded)
            if isinstance(text.content, str):
                prompt: Any = VllmText(prompt=text.content)
            else:
                self._renderer.validate_token_ids(text.content, parameter=text.param)
                prompt = TokensPrompt(prompt_token_ids=text.content)
            rendered = await self._rendering.of(
                len(text.content) <= SHORT,
                partial(self._renderer.render_cmpl, [prompt], tokenize),
                partial(self._renderer.render_cmpl_async, [prompt], tokenize),
            )
        token_ids = rendered[0]["prompt_token_ids"]
        whole = isinstance(text.content, str) and text.truncate_tokens is None
        return Prompt(token_ids, str(text.content) if whole else None)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        with translated("tokens"):
            self._renderer.validate_token_ids(token_ids, parameter="tokens")
            prompt = TokensPrompt(prompt_token_ids=list(token_ids))
            params = TokenizeParams(max_total_tokens=None, needs_detokenization=True)
            rendered = await self._rendering.of(
                len(token_ids) <= SHORT,
                partial(self._renderer.tokenize_prompt, prompt, params),
                partial(self._renderer.tokenize_prompt_async, prompt, params),
            )
        return str(rendered["prompt"])

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return list(self._renderer.get_tokenizer().convert_ids_to_tokens(list(token_ids)))

    def _tokenize_params(
        self, prompt: ChatPrompt | TextPrompt, default: TokenizeParams, bounded: bool
    ) -> TokenizeParams:
        return replace(
            default,
            max_total_tokens=self.facts.max_model_len if bounded else None,
            # One token of context is kept for the answer when the prompt is truncated.
            max_output_tokens=1 if bounded else 0,
            add_special_tokens=prompt.add_special_tokens,
            truncate_prompt_tokens=prompt.truncate_tokens,
            truncation_side=prompt.truncation_side,
        )


def _is_short(chat: ChatPrompt) -> bool:
    return not chat.tools and sum(len(m["content"]) for m in chat.messages) <= SHORT


def _dimensions(model: ModelConfig) -> Sequence[int]:
    if not model.is_matryoshka:
        return ()
    return tuple(model.matryoshka_dimensions or ()) or range(1, model.embedding_size + 1)
