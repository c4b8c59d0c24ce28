"""What can be refused without knowing the model: ranges, sizes and contradictions."""

import math
from typing import Any

from tenuto.errors import BadRequest, quoted
from tenuto.wire.bounds import Bounds, ranges
from tenuto.wire.constraint import judged_constraint
from tenuto.wire.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    Message,
    as_batch,
)
from tenuto.wire.tools import judge_calls, judge_tools

TEMPLATE_OWNED = {
    "chat_template",
    "messages",
    "tools",
    "documents",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
}


def judge_chat(request: ChatRequest, bounds: Bounds) -> None:
    """Errors: `BadRequest`, with the param to blame."""
    judge_messages(request.messages, bounds)
    judge_template(request.chat_template, request.chat_template_kwargs, bounds)
    _judge_generation(request, bounds)
    judge_tools(request.tools, request.tool_choice, bounds)
    if request.tools and request.detokenize is False:
        _refuse_without_text("tools")
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if request.continue_final_message and request.add_generation_prompt:
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )


def judge_completion(request: CompletionRequest, bounds: Bounds) -> None:
    """Errors: `BadRequest`, with the param to blame."""
    if not all(judge_batch(request.prompt, bounds.prompts)):
        raise BadRequest("prompt must be non-empty.", param="prompt")
    _judge_generation(request, bounds, least_max_tokens=0 if request.echo else 1)
    if request.suffix:
        raise BadRequest("suffix must be left out: no model here fills in.", param="suffix")
    if request.logprobs is not None and not 0 <= request.logprobs <= bounds.logprobs:
        raise _outside("logprobs", request.logprobs, f"at least 0 and at most {bounds.logprobs}")
    if request.detokenize is False and request.echo:
        _refuse_without_text("echo")


def judge_embedding(request: EmbeddingRequest, bounds: Bounds) -> list[Any]:
    """The texts, each a string or token ids. Errors: `BadRequest`, with the param to blame."""
    batch = judge_batch(request.input, bounds.inputs, "input")
    if not all(batch):
        raise BadRequest("input must be non-empty.", param="input")
    return batch


def judge_messages(messages: list[Message], bounds: Bounds) -> None:
    if not 1 <= len(messages) <= bounds.messages:
        raise BadRequest(
            f"messages must hold 1 to {bounds.messages} messages, got {len(messages)}.",
            param="messages",
        )
    for position, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise BadRequest(
                f"messages[{position}].content must be given for the role {message.role}.",
                param="messages",
            )
        judge_calls(message.tool_calls or [], f"messages[{position}]")


def judge_template(template: object, arguments: dict[str, Any] | None, bounds: Bounds) -> None:
    if template is not None:
        raise BadRequest(
            "chat_template must be left out: templates belong to the server's registry.",
            param="chat_template",
        )
    if arguments is None:
        return
    owned = [name for name in arguments if name in TEMPLATE_OWNED or name.endswith("_token")]
    if owned or len(arguments) > bounds.template_kwargs:
        blame = f"must not hold {quoted(owned[0])}" if owned else "holds too many entries"
        raise BadRequest(
            f"chat_template_kwargs {blame}; at most {bounds.template_kwargs} names that rendering "
            "does not use itself are allowed.",
            param="chat_template_kwargs",
        )


def judge_batch(prompt: str | list[Any], most: int, param: str = "prompt") -> list[Any]:
    """The prompts of a batch. Errors: `BadRequest`, which blames `param`."""
    batch = as_batch(prompt)
    if not 1 <= len(batch) <= most:
        raise BadRequest(f"{param} must hold 1 to {most} prompts, got {len(batch)}.", param=param)
    return batch


def _judge_generation(
    request: GenerationRequest, bounds: Bounds, least_max_tokens: int = 1
) -> None:
    _judge_ranges(request, bounds, least_max_tokens)
    _judge_candidates(request)
    _judge_strings("stop", request.stop, bounds.stop_strings, bounds.stop_characters)
    _judge_strings("bad_words", request.bad_words, bounds.bad_words, bounds.stop_characters)
    _judge_size("stop_token_ids", request.stop_token_ids, bounds.token_ids)
    _judge_size("allowed_token_ids", request.allowed_token_ids, bounds.token_ids)
    _judge_logit_bias(request.logit_bias, bounds)
    if request.allowed_token_ids is not None and not request.allowed_token_ids:
        raise BadRequest("allowed_token_ids must be non-empty.", param="allowed_token_ids")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options needs stream to be true.", param="stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs needs stream to be false.", param="prompt_logprobs")
    if request.detokenize is False and request.stop:
        _refuse_without_text("stop")
    asked = judged_constraint(request, bounds)
    if asked is not None and request.detokenize is False:
        _refuse_without_text(asked.param)


def _judge_ranges(request: GenerationRequest, bounds: Bounds, least_max_tokens: int) -> None:
    for name, interval in ranges(bounds).items():
        # Not getattr alone: an unknown field's value, of any type, is an attribute too.
        value = getattr(request, name) if name in type(request).model_fields else None
        if name == "max_tokens" and value == least_max_tokens:
            continue
        if value is not None and not interval.admits(value):
            raise _outside(name, value, str(interval))
    limit = request.max_tokens
    if limit is not None and request.min_tokens is not None and request.min_tokens > limit:
        raise _outside("min_tokens", request.min_tokens, f"at most max_tokens={limit}")


def _judge_candidates(request: GenerationRequest) -> None:
    n = request.n or 1
    if request.best_of is not None and request.best_of < n:
        raise _outside("best_of", request.best_of, f"at least n={n}")
    if request.temperature == 0 and n > 1:
        raise _outside("n", n, "1 when temperature is 0, since all choices would be equal")


def _judge_strings(
    name: str, value: str | list[str] | None, most: int, most_characters: int
) -> None:
    strings = [value] if isinstance(value, str) else value or []
    if len(strings) > most or any(not 1 <= len(text) <= most_characters for text in strings):
        raise BadRequest(
            f"{name} must hold at most {most} strings of 1 to {most_characters} characters.",
            param=name,
        )


def _judge_size(name: str, value: list[int] | None, most: int) -> None:
    if value is not None and len(value) > most:
        raise _outside(name, f"{len(value)} entries", f"at most {most} entries")


def _judge_logit_bias(value: dict[str, float] | None, bounds: Bounds) -> None:
    if value is None:
        return
    allowed = f"at most {bounds.logit_bias} token ids, each with a bias from -100 to 100"
    if len(value) > bounds.logit_bias:
        raise _outside("logit_bias", f"{len(value)} entries", allowed)
    for token, bias in value.items():
        is_token = token.isascii() and token.isdigit() and len(token) < 10
        if not is_token or not (math.isfinite(bias) and -100 <= bias <= 100):
            raise _outside("logit_bias", f"{quoted(token)}: {bias:g}", allowed)


def _outside(name: str, value: object, allowed: str) -> BadRequest:
    return BadRequest(f"{name} must be {allowed}, got {quoted(value)}.", param=name)


def _refuse_without_text(name: str) -> None:
    raise BadRequest(f"detokenize must not be false together with {name}.", param="detokenize")
