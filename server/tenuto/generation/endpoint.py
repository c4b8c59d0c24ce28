"""The two endpoints side by side: what each does at every stage of the request's path."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenuto.engine.base import Prompts
from tenuto.engine.types import ModelFacts, Prompt
from tenuto.errors import BadRequest, SystemPromptRejected
from tenuto.generation.answer import chat_answer, completion_answer
from tenuto.generation.frames import ChatFrames, CompletionFrames
from tenuto.generation.policy import Policy
from tenuto.generation.translate import (
    Plan,
    chat_plan,
    chat_prompt,
    completion_plan,
    text_prompts,
)
from tenuto.wire.bounds import Bounds
from tenuto.wire.judge import judge_chat, judge_completion
from tenuto.wire.requests import ChatRequest, CompletionRequest, Message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`prompt_param` is the field that holds the prompt. `admit` is apart from `render`, so that
    no model is loaded for what it refuses."""

    route: str
    kind: type[Any]
    id_prefix: str
    prompt_param: str
    judge: Callable[[Any, Bounds], None]
    admit: Callable[[Any, Policy], None]
    plan: Callable[[Any, ModelFacts, Bounds], Plan]
    render: Callable[[Any, Prompts, Policy], Awaitable[Sequence[Prompt]]]
    answer: Callable[..., Any]
    frames: Callable[..., Any]


def admit_chat(request: ChatRequest, policy: Policy) -> None:
    """Errors: `SystemPromptRejected`, `BadRequest`."""
    if policy.system_prompt == "reject" and any(map(_is_system, request.messages)):
        raise SystemPromptRejected(request.model)
    if request.tools and request.tool_choice in (None, "auto") and not policy.has_tool_parser:
        raise BadRequest(
            "tools with tool_choice auto need a model with a tool_parser; this one takes "
            "tool_choice 'required', a named function, or 'none'.",
            param="tools",
        )
    if request.detokenize is False and policy.has_reasoning_parser:
        raise BadRequest(
            "detokenize must not be false for a model with a reasoning_parser, which reads text.",
            param="detokenize",
        )


def admit_text(request: CompletionRequest, policy: Policy) -> None:
    """Texts have no system prompt."""


async def render_chat(
    request: ChatRequest, prompts: Prompts, policy: Policy, *, bounded: bool = True
) -> list[Prompt]:
    """Errors: `BadRequest`."""
    return [await prompts.chat(chat_prompt(request, policy.system_prompt), bounded=bounded)]


async def render_text(
    request: CompletionRequest, prompts: Prompts, policy: Policy, *, bounded: bool = True
) -> list[Prompt]:
    """Errors: `BadRequest`."""
    rendered = [await prompts.text(text, bounded=bounded) for text in text_prompts(request)]
    if not request.echo:
        return rendered
    return [await _with_text(prompt, prompts) for prompt in rendered]


async def _with_text(prompt: Prompt, prompts: Prompts) -> Prompt:
    if prompt.text is not None:
        return prompt
    return replace(prompt, text=await prompts.detokenize(prompt.token_ids))


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


CHAT = Endpoint(
    route="/chat/completions",
    kind=ChatRequest,
    id_prefix="chatcmpl-",
    prompt_param="messages",
    judge=judge_chat,
    admit=admit_chat,
    plan=chat_plan,
    render=render_chat,
    answer=chat_answer,
    frames=ChatFrames,
)
COMPLETION = Endpoint(
    route="/completions",
    kind=CompletionRequest,
    id_prefix="cmpl-",
    prompt_param="prompt",
    judge=judge_completion,
    admit=admit_text,
    plan=completion_plan,
    render=render_text,
    answer=completion_answer,
    frames=CompletionFrames,
)
