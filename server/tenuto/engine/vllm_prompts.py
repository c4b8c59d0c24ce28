"""Rendering, counting and decoding with vLLM's own renderer, without an engine or weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.inputs import TextPrompt as VllmText
from vllm.inputs import TokensPrompt
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.registry import renderer_from_config

from tenuto.engine.types import ChatPrompt, EngineSpec, ModelFacts, Prompt, TextPrompt
from tenuto.engine.vllm_errors import translated
from tenuto.engine.vllm_parsers import Parsers
from tenuto.engine.vllm_plain import SAMPLES, SHORT, Plain, size_of


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
        self._chat_template = spec.chat_template
        plain = Plain(self._renderer.get_tokenizer(), spec.chat_template, model)
        self._plain = plain if all(self._agrees(plain, sample) for sample in SAMPLES) else None
        self._parsers = Parsers(
            model, self._renderer.get_tokenizer(), spec.tool_parser, spec.reasoning_parser
        )

    async def chat(self, chat: ChatPrompt, *, bounded: bool = True) -> Prompt:
        with translated("messages"):
            if (token_ids := self._plainly(chat, bounded)) is not None:
                prompt = Prompt(token_ids)
            else:
                asked = self._chat_params(chat, bounded)
                _, rendered = await self._renderer.render_chat_async([chat.messages], *asked)
                prompt = Prompt(rendered[0]["prompt_token_ids"], rendered[0].get("prompt"))
            parsers = self._parsers.of(chat)
        return prompt if parsers is None else parsers.attached(prompt)

    async def text(self, text: TextPrompt, *, bounded: bool = True) -> Prompt:
        with translated(text.param):
            if (token_ids := self._plainly(text, bounded)) is None:
                tokenize = self._text_params(text, bounded)
                if not isinstance(text.content, str):
                    self._renderer.validate_token_ids(text.content, parameter=text.param)
                rendered = await self._renderer.render_cmpl_async([_vllm_text(text)], tokenize)
                token_ids = rendered[0]["prompt_token_ids"]
        whole = isinstance(text.content, str) and text.truncate_tokens is None
        return Prompt(token_ids, str(text.content) if whole else None)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        with translated("tokens"):
            self._renderer.validate_token_ids(token_ids, parameter="tokens")
            rendered = await self._renderer.tokenize_prompt_async(
                TokensPrompt(prompt_token_ids=list(token_ids)),
                TokenizeParams(max_total_tokens=None, needs_detokenization=True),
            )
        return str(rendered["prompt"])

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return list(self._renderer.get_tokenizer().convert_ids_to_tokens(list(token_ids)))

    def _plainly(self, prompt: ChatPrompt | TextPrompt, bounded: bool) -> list[int] | None:
        """At once what is short; vLLM does the rest in threads, where nobody waits for it. One that
        is too long is vLLM's to refuse."""
        if self._plain is None or size_of(prompt) > SHORT:
            return None
        token_ids = self._plain.token_ids(prompt)
        if bounded and token_ids is not None and len(token_ids) >= self.facts.max_model_len:
            return None
        return token_ids

    def _agrees(self, plain: Plain, sample: ChatPrompt | TextPrompt) -> bool:
        """Whether vLLM makes the same of it, or refuses it as well."""
        try:
            if isinstance(sample, ChatPrompt):
                asked = self._chat_params(sample, bounded=False)
                _, rendered = self._renderer.render_chat([sample.messages], *asked)
            else:
                tokenize = self._text_params(sample, bounded=False)
                rendered = self._renderer.render_cmpl([_vllm_text(sample)], tokenize)
        except Exception:
            return plain.token_ids(sample) is None
        expected: list[int] = rendered[0]["prompt_token_ids"]
        return plain.token_ids(sample) == expected

    def _chat_params(self, chat: ChatPrompt, bounded: bool) -> tuple[ChatParams, TokenizeParams]:
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
        default = self._renderer.default_chat_tok_params
        return params, self._tokenize_params(chat, default, bounded)

    def _text_params(self, text: TextPrompt, bounded: bool) -> TokenizeParams:
        return self._tokenize_params(text, self._renderer.default_cmpl_tok_params, bounded)

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


def _vllm_text(text: TextPrompt) -> Any:
    if isinstance(text.content, str):
        return VllmText(prompt=text.content)
    return TokensPrompt(prompt_token_ids=text.content)


def _dimensions(model: ModelConfig) -> Sequence[int]:
    if not model.is_matryoshka:
        return ()
    return tuple(model.matryoshka_dimensions or ()) or range(1, model.embedding_size + 1)
