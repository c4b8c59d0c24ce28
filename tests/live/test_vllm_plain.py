"""What takes the template and the tokenizer alone is what vLLM's renderer makes of it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest

from tenuto.engine.base import Prompts
from tenuto.engine.types import ChatPrompt, Prompt, TextPrompt
from tenuto.errors import BadRequest
from tests.live.test_engine_seam import SPEC, real_backend

pytestmark = pytest.mark.live
PIECES = (
    *("Hello", " ", "\n", "é", "e\u0301", "漢字", "\U0001f600"),
    *("<|eot_id|>", "<s>", "\x00", "x" * 60),
)
ROLES = ("system", "user", "assistant")
# vLLM gives such a template lists of parts.
OF_PARTS = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}"
)
REFUSING = "{{ raise_exception('Only cats may speak.') }}"


def of(tmp_path: Path, **fields: Any) -> Prompts:
    with real_backend(tmp_path) as backend:
        return asyncio.run(backend.prompts(replace(SPEC, **fields)))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return of(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def count() -> Iterator[mock.Mock]:
    """Of what takes the short way."""
    from tenuto.engine.vllm_plain import Plain

    with mock.patch.object(Plain, "_encoded", autospec=True, side_effect=Plain._encoded) as found:
        yield found


def by_vllm(prompts: Prompts, asked: ChatPrompt | TextPrompt) -> Prompt:
    from tenuto.engine.vllm_plain import Plain

    with mock.patch.object(Plain, "token_ids", return_value=None):
        return made(prompts, asked)


def made(prompts: Prompts, asked: ChatPrompt | TextPrompt) -> Prompt:
    if isinstance(asked, ChatPrompt):
        return asyncio.run(prompts.chat(asked))
    return asyncio.run(prompts.text(asked))


def test_random_prompts(prompts: Prompts, count: mock.Mock) -> None:
    random = Random(7)

    def text() -> str:
        return "".join(random.choices(PIECES, k=random.randrange(12)))

    for number in range(60):
        turns = [{"role": random.choice(ROLES), "content": text()} for _ in range(1 + number % 4)]
        for asked in (
            ChatPrompt(turns, add_generation_prompt=number % 2 == 0),
            TextPrompt(text() or "a", add_special_tokens=number % 3 == 0),
        ):
            before = count.call_count
            assert made(prompts, asked).token_ids == by_vllm(prompts, asked).token_ids, asked
            assert count.call_count == before + 1


@pytest.mark.parametrize(
    "asked",
    [
        ChatPrompt([{"role": "user", "content": "a"}], truncate_tokens=3),
        ChatPrompt([{"role": "user", "content": "a"}], continue_final_message=True),
        ChatPrompt([{"role": "user", "content": "a", "name": "Ann"}]),
        ChatPrompt([{"role": "developer", "content": "a"}]),
        ChatPrompt([{"role": "user", "content": "a" * 3000}]),
        ChatPrompt([{"role": "user", "content": "a"}], template_kwargs={"enable_thinking": True}),
        TextPrompt([1, 2, 3]),
        TextPrompt("a b c", truncate_tokens=2),
        TextPrompt("a " * 2000),
    ],
    ids=str,
)
def test_all_else_is_vllms(prompts: Prompts, count: mock.Mock, asked: Any) -> None:
    if isinstance(asked, ChatPrompt) and asked.continue_final_message:
        asked = replace(asked, add_generation_prompt=False)
    assert made(prompts, asked).token_ids
    assert count.call_count == 0


def test_a_template_that_wants_something_else(tmp_path: Path, count: mock.Mock) -> None:
    prompts = of(tmp_path, chat_template=OF_PARTS)
    tried = count.call_count
    prompt = made(prompts, ChatPrompt([{"role": "user", "content": "Hello!"}]))
    assert asyncio.run(prompts.detokenize(prompt.token_ids)) == "Hello!"
    assert count.call_count == tried


def test_a_template_that_refuses(tmp_path: Path) -> None:
    prompts = of(tmp_path, chat_template=REFUSING)
    with pytest.raises(BadRequest, match="Only cats may speak"):
        made(prompts, ChatPrompt([{"role": "user", "content": "Hello!"}]))
