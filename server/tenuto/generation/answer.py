"""Unstreamed answers of both endpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

from tenuto import __version__
from tenuto.engine.types import Parsed, Prompt, TokenLogprob, ToolCall
from tenuto.generation.fold import Choice, Folded, chosen
from tenuto.generation.logprobs import (
    chat_logprobs,
    completion_logprobs,
    finite,
    name_first_token,
    token_text,
)
from tenuto.generation.parsing import answer_parser, call_id
from tenuto.generation.translate import Plan
from tenuto.generation.usage import Tally
from tenuto.wire.responses import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    FunctionCall,
    MessageToolCall,
)
from tenuto.wire.tools import NamedTool

SYSTEM_FINGERPRINT = f"tenuto-{__version__}"


@dataclass(frozen=True, slots=True)
class Head:
    """What every answer and every chunk of one request repeats; `model` is the name asked for."""

    id: str
    created: int
    model: str


def returned(folded: Folded, prompts: Sequence[Prompt], plan: Plan) -> list[Choice]:
    choices = chosen(folded, len(prompts), plan.sampling.n, plan.n)
    if plan.drop_completion:
        choices = [Choice(choice.index, finish_reason="length") for choice in choices]
    return choices


def tally_of(choices: Sequence[Choice], folded: Folded, prompts: Sequence[Prompt]) -> Tally:
    tally = Tally.of(prompts)
    tally.cached_tokens = folded.cached_tokens
    tally.completion_tokens = sum(len(choice.token_ids) for choice in choices)
    tally.finish = choices[-1].finish_reason
    return tally


def chat_answer(
    head: Head, folded: Folded, prompts: Sequence[Prompt], plan: Plan
) -> tuple[ChatCompletion, Tally]:
    choices = returned(folded, prompts, plan)
    tally = tally_of(choices, folded, prompts)
    answer = ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_chat_choice(choice, plan, prompts[0]) for choice in choices],
        usage=tally.usage(),
        system_fingerprint=SYSTEM_FINGERPRINT,
        prompt_logprobs=_prompt_logprobs(folded, 0, plan),
        prompt_token_ids=_asked_prompt_ids(prompts[0], plan),
    )
    return answer, tally


def completion_answer(
    head: Head, folded: Folded, prompts: Sequence[Prompt], plan: Plan
) -> tuple[Completion, Tally]:
    choices = returned(folded, prompts, plan)
    tally = tally_of(choices, folded, prompts)
    answer = Completion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[
            _completion_choice(choice, folded, choice.index // plan.n, prompts, plan)
            for choice in choices
        ],
        usage=tally.usage(),
        system_fingerprint=SYSTEM_FINGERPRINT,
    )
    return answer, tally


def _chat_choice(choice: Choice, plan: Plan, prompt: Prompt) -> ChatChoice:
    parser = answer_parser(plan, prompt)
    parsed = parser.whole(choice.text, choice.token_ids) if parser else Parsed(choice.text)
    return ChatChoice(
        index=choice.index,
        message=_message(parsed),
        finish_reason=finish_of(choice.finish_reason, bool(parsed.tool_calls), plan),
        stop_reason=choice.stop_reason,
        logprobs=chat_logprobs(choice.logprobs, plan),
        token_ids=_asked_ids(choice.token_ids, plan),
    )


def _message(parsed: Parsed) -> ChatMessage:
    reasoning = parsed.reasoning or UNSET
    return ChatMessage(
        content=parsed.content if parsed.content or not parsed.tool_calls else None,
        reasoning_content=reasoning,
        reasoning=reasoning,
        tool_calls=[_tool_call(call) for call in parsed.tool_calls] or UNSET,
    )


def _tool_call(call: ToolCall) -> MessageToolCall:
    function = FunctionCall(call.name or "", call.arguments)
    return MessageToolCall(function, id=call.id or call_id(), type="function")


def finish_of(reason: str | None, called: bool, plan: Plan) -> str | None:
    """OpenAI's: `tool_calls` when the model chose to call, `stop` when a function was named."""
    named = isinstance(plan.forced_choice, NamedTool)
    return "tool_calls" if called and reason == "stop" and not named else reason


def _completion_choice(
    choice: Choice, folded: Folded, position: int, prompts: Sequence[Prompt], plan: Plan
) -> CompletionChoice:
    prompt = prompts[position]
    return CompletionChoice(
        index=choice.index,
        text=(prompt.text or "") + choice.text if plan.echo else choice.text,
        logprobs=_completion_logprobs(choice, folded.prompt_logprobs.get(position), prompt, plan),
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        token_ids=_asked_ids(choice.token_ids, plan),
        prompt_logprobs=_prompt_logprobs(folded, position, plan),
        prompt_token_ids=_asked_prompt_ids(prompt, plan),
    )


def _completion_logprobs(
    choice: Choice, echoed: list[TokenLogprob | None] | None, prompt: Prompt, plan: Plan
) -> CompletionLogprobs | None:
    if not plan.echo:
        return completion_logprobs(choice.logprobs, plan)
    logprobs = completion_logprobs([*(echoed or ()), *(choice.logprobs or ())], plan)
    if logprobs is not None and echoed and echoed[0] is None:
        name_first_token(logprobs, prompt, plan)
    return logprobs


def _asked_ids(token_ids: Sequence[int], plan: Plan) -> list[int] | UnsetType:
    return list(token_ids) if plan.return_token_ids else UNSET


def _asked_prompt_ids(prompt: Prompt, plan: Plan) -> list[int] | UnsetType:
    return prompt.token_ids if plan.return_prompt_token_ids else UNSET


def _prompt_logprobs(folded: Folded, position: int, plan: Plan) -> Any:
    """vLLM's shape: per prompt token a map from token id to its log-probability, or null."""
    entries = folded.prompt_logprobs.get(position)
    if entries is None or plan.echo:
        return UNSET
    return [None if entry is None else _by_id(entry, plan) for entry in entries]


def _by_id(entry: TokenLogprob, plan: Plan) -> dict[str, Any]:
    rows = [(entry.token_id, entry.token, entry.logprob)]
    rows += [(top.token_id, top.token, top.logprob) for top in entry.top]
    return {
        str(token_id): {
            "logprob": finite(logprob),
            "decoded_token": token_text(token_id, token, plan),
        }
        for token_id, token, logprob in rows
    }
