"""Chats of roles and texts, and plain texts, by template and tokenizer alone.

Most prompts are no more than that, and of the 300 us that vLLM's renderer takes for a short chat
the template and the tokenizer take 140. All else is vLLM's to render and to refuse.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerFast
from vllm.renderers.hf import resolve_chat_template

from tenuto.engine.types import ChatPrompt, TextPrompt

# Characters: about half a millisecond's, in which nobody else is served.
SHORT = 2048
ROLES = {"system", "user", "assistant"}
KEYS = {"role", "content"}
# What tokenizers and templates are known to treat in a way of their own.
ODD = " Two  spaces,\n\n\ta tab, é, e\u0301, 漢字, \U0001f600 and <|eot_id|></s>[INST].\n "
TURNS = [{"role": role, "content": ODD} for role in ("system", "user", "assistant", "user")]
SAMPLES: Sequence[ChatPrompt | TextPrompt] = (
    ChatPrompt([{"role": "user", "content": "Hello!"}]),
    ChatPrompt(TURNS),
    ChatPrompt(TURNS[1:]),
    ChatPrompt(TURNS[1:3], add_generation_prompt=False),
    TextPrompt("Hello!"),
    TextPrompt(ODD),
    TextPrompt(ODD, add_special_tokens=False),
)


class Plain:
    """`template` is the registry's, in place of the model's own. Not for use in threads."""

    def __init__(self, tokenizer: Any, template: str | None, model: Any) -> None:
        self._tokenizer = tokenizer
        self._template: str | None = None
        self._backend: Any = None
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            self._template = resolve_chat_template(
                tokenizer, chat_template=template, tools=None, model_config=model
            )
            # vLLM itself encodes with copies of it, so that it stays as it is.
            self._backend = tokenizer._tokenizer
            self._backend.no_truncation()
            self._backend.no_padding()

    def token_ids(self, prompt: ChatPrompt | TextPrompt) -> list[int] | None:
        """None for what is not plain."""
        if self._backend is None or prompt.truncate_tokens is not None:
            return None
        if isinstance(prompt, TextPrompt):
            text = prompt.content
            return self._encoded(text, prompt.add_special_tokens) if isinstance(text, str) else None
        # A template may refuse a chat; vLLM has the words for it.
        with suppress(Exception):
            if self._template is not None and _is_plain(prompt):
                return self._encoded(self._applied(prompt))
        return None

    def _applied(self, chat: ChatPrompt) -> str:
        # Not that of vLLM's pool, whose copies are for tokenizing.
        rendered: str = PreTrainedTokenizerFast.apply_chat_template(
            self._tokenizer,
            chat.messages,
            chat_template=self._template,
            add_generation_prompt=chat.add_generation_prompt,
            tokenize=False,
        )
        return rendered

    def _encoded(self, text: str, add_special_tokens: bool = False) -> list[int]:
        # The fast one does not say which characters a token came from.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoding.ids
        return token_ids


def size_of(prompt: ChatPrompt | TextPrompt) -> int:
    """In characters, or tokens where it comes in those."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.content)
    return sum(len(message["content"]) for message in prompt.messages)


def _is_plain(chat: ChatPrompt) -> bool:
    is_asked_more = (
        chat.tools or chat.template_kwargs or chat.continue_final_message or chat.add_special_tokens
    )
    return not is_asked_more and all(
        message.keys() == KEYS and message["role"] in ROLES for message in chat.messages
    )
