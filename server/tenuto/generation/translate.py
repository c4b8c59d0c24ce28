"""A judged wire request as an engine's prompt and sampling. Pure: no clock, no engine."""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tenuto.engine.types import (
    ChatPrompt,
    Constraint,
    ModelFacts,
    Sampling,
    TextPrompt,
)
from tenuto.errors import BadRequest, quoted
from tenuto.generation.tools import named_schema, required_schema
from tenuto.wire.bounds import Bounds
from tenuto.wire.constraint import constrained
from tenuto.wire.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    as_batch,
)
from tenuto.wire.tools import NamedTool, ToolChoice

DEFAULT_COMPLETION_MAX_TOKENS = 16


class Plan(Struct, frozen=True):
    """`sampling` asks the engine for `candidates` sequences per prompt; `n` of them are returned.

    `forced_choice`: the tool choice that `sampling` is constrained to.
    `single_call`: of the calls that the model chooses to make, the first alone is returned.
    `drop_completion`: the engine cannot generate nothing, so its one token is dropped.
    """

    sampling: Sampling
    n: int
    stream: bool
    include_usage: bool = False
    echo: bool = False
    drop_completion: bool = False
    logprobs: int | None = None
    return_token_ids: bool = False
    return_prompt_token_ids: bool = False
    token_ids_as_text: bool = False
    forced_choice: ToolChoice | None = None
    single_call: bool = False

    def stopping_at(self, token_ids: tuple[int, ...]) -> "Plan":
        """With the registry's ends of a turn beside the request's."""
        if not token_ids:
            return self
        stops = self.sampling.stop_token_ids + token_ids
        return replace(self, sampling=replace(self.sampling, stop_token_ids=stops))

    def asked_by(self, priority: int, cache_salt: str | None, lora: str | None) -> "Plan":
        """With what the key and the model's name add to the request."""
        sampling = replace(self.sampling, priority=priority, cache_salt=cache_salt, lora=lora)
        return replace(self, sampling=sampling)


def chat_prompt(request: ChatRequest, system_prompt: str) -> ChatPrompt:
    messages = [_message(message) for message in request.messages]
    if system_prompt == "merge":
        messages = merge_system(messages)
    continued = bool(request.continue_final_message)
    generation_prompt = request.add_generation_prompt
    return ChatPrompt(
        messages=messages,
        add_generation_prompt=not continued if generation_prompt is None else generation_prompt,
        continue_final_message=continued,
        add_special_tokens=bool(request.add_special_tokens),
        truncate_tokens=request.truncate_prompt_tokens,
        truncation_side=request.truncation_side,
        template_kwargs=_template_kwargs(request),
        tools=tuple(tool.model_dump(exclude_none=True) for tool in request.tools or ()),
        parse_tools=bool(request.tools) and request.tool_choice in (None, "auto"),
    )


def text_prompts(request: CompletionRequest) -> list[TextPrompt]:
    return [
        TextPrompt(
            content=content,
            add_special_tokens=request.add_special_tokens is not False,
            truncate_tokens=request.truncate_prompt_tokens,
            truncation_side=request.truncation_side,
        )
        for content in as_batch(request.prompt)
    ]


def chat_plan(request: ChatRequest, facts: ModelFacts, bounds: Bounds) -> Plan:
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    plan = _plan(request, logprobs, facts)
    asked = request.max_tokens or request.max_completion_tokens
    param = "max_tokens" if request.max_tokens else "max_completion_tokens"
    sampling = _limited(plan, asked, param, facts, bounds)
    forced = _forced(request)
    if forced is None:
        single = request.parallel_tool_calls is False
        return replace(plan, sampling=sampling, single_call=single)
    if sampling.constraint is not None:
        raise BadRequest(
            f"{sampling.constraint.param} and a forced tool_choice exclude each other.",
            param=sampling.constraint.param,
        )
    return replace(
        plan,
        sampling=replace(sampling, constraint=forced),
        forced_choice=request.tool_choice,
    )


def completion_plan(request: CompletionRequest, facts: ModelFacts, bounds: Bounds) -> Plan:
    plan = _plan(request, request.logprobs, facts)
    asked = request.max_tokens
    if asked is None:
        asked = min(DEFAULT_COMPLETION_MAX_TOKENS, facts.max_model_len)
    sampling = _limited(plan, max(asked, 1), "max_tokens", facts, bounds)
    if request.echo and request.logprobs is not None:
        sampling = replace(sampling, prompt_logprobs=request.logprobs)
    return replace(plan, sampling=sampling, echo=bool(request.echo), drop_completion=asked == 0)


def fitted(sampling: Sampling, prompt_tokens: int, facts: ModelFacts, param: str) -> Sampling:
    """`sampling` with `max_tokens` clamped to the context that the prompt leaves.

    Errors: `BadRequest` when nothing is left (`param` is the prompt's field), or less than
    `min_tokens`.
    """
    left = facts.max_model_len - prompt_tokens
    if left < 1:
        raise BadRequest(
            f"This model's maximum context length is {facts.max_model_len} tokens, and the prompt "
            f"alone has {prompt_tokens}. Please shorten it.",
            param=param,
        )
    max_tokens = min(sampling.max_tokens, left)
    if sampling.min_tokens > max_tokens:
        raise BadRequest(
            f"min_tokens must be at most {max_tokens}, which is what the model's context and "
            f"max_tokens leave, got {sampling.min_tokens}.",
            param="min_tokens",
        )
    return replace(sampling, max_tokens=max_tokens)


def merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Folds system and developer texts into the first user turn, in their order."""
    texts = [m["content"] for m in messages if m["role"] in ("system", "developer")]
    turns = [m for m in messages if m["role"] not in ("system", "developer")]
    if not texts:
        return turns
    for position, turn in enumerate(turns):
        if turn["role"] == "user":
            merged = turn | {"content": "\n\n".join([*texts, turn["content"]])}
            return [*turns[:position], merged, *turns[position + 1 :]]
    return [{"role": "user", "content": "\n\n".join(texts)}, *turns]


def _forced(request: ChatRequest) -> Constraint | None:
    """What a forced tool choice constrains the answer to: we enforce it, without a parser."""
    choice, tools = request.tool_choice, request.tools or []
    if isinstance(choice, NamedTool):
        return Constraint("tools", "json_schema", named_schema(tools, choice.function.name))
    if choice == "required":
        parallel = request.parallel_tool_calls is not False
        return Constraint("tools", "json_schema", required_schema(tools, parallel))
    return None


def _template_kwargs(request: ChatRequest) -> dict[str, Any]:
    effort = request.reasoning_effort
    given = request.chat_template_kwargs or {}
    if effort is None:
        return given
    # Most templates know a switch and no effort: vLLM's server sets it too.
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"} | given


def _message(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part if isinstance(part, str) else part.text for part in content)
    rendered = {"role": message.role, "content": content or "", **(message.model_extra or {})}
    if message.tool_calls:
        rendered["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
    return rendered


def _plan(request: GenerationRequest, logprobs: int | None, facts: ModelFacts) -> Plan:
    n = request.n or 1
    candidates = n if request.temperature == 0 else max(n, request.best_of or n)
    sampling = _sampling(request, facts)
    # vLLM reports the cumulative log-probability, by which candidates are ranked, only when asked
    # for log-probabilities; 0 of them is enough.
    ranking = 0 if candidates > n and logprobs is None else logprobs
    stream = bool(request.stream)
    return Plan(
        sampling=replace(
            sampling, n=candidates, stream=stream and candidates == n, logprobs=ranking
        ),
        n=n,
        stream=stream,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        logprobs=logprobs,
        return_token_ids=bool(request.return_token_ids) or request.detokenize is False,
        return_prompt_token_ids=bool(request.return_token_ids),
        token_ids_as_text=bool(request.return_tokens_as_token_ids) or request.detokenize is False,
    )


def _sampling(request: GenerationRequest, facts: ModelFacts) -> Sampling:
    def given(name: str, default: Any) -> Any:
        value = getattr(request, name)
        return default if value is None else value

    stop = given("stop", ())
    seed = request.seed
    return Sampling(
        max_tokens=facts.max_model_len,
        temperature=given("temperature", 1.0),
        top_p=given("top_p", 1.0),
        top_k=_top_k(request.top_k, facts.vocab_size),
        min_p=given("min_p", 0.0),
        presence_penalty=given("presence_penalty", 0.0),
        frequency_penalty=given("frequency_penalty", 0.0),
        repetition_penalty=given("repetition_penalty", 1.0),
        seed=None if seed == -1 else seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(given("stop_token_ids", ())),
        min_tokens=given("min_tokens", 0),
        ignore_eos=given("ignore_eos", False),
        include_stop_str_in_output=given("include_stop_str_in_output", False),
        detokenize=given("detokenize", True),
        skip_special_tokens=given("skip_special_tokens", True),
        spaces_between_special_tokens=given("spaces_between_special_tokens", True),
        prompt_logprobs=request.prompt_logprobs,
        logit_bias={int(k): v for k, v in request.logit_bias.items()}
        if request.logit_bias
        else None,
        bad_words=tuple(given("bad_words", ())),
        allowed_token_ids=tuple(request.allowed_token_ids) if request.allowed_token_ids else None,
        constraint=_constraint(request),
        cache_salt=request.cache_salt,
    )


def _top_k(asked: int | None, vocab_size: int) -> int:
    return 0 if asked is None or asked < 1 else min(asked, vocab_size)


def _constraint(request: GenerationRequest) -> Constraint | None:
    asked = constrained(request)
    if asked is None:
        return None
    return Constraint(asked.param, asked.kind, asked.value)


def _limited(
    plan: Plan, asked: int | None, param: str, facts: ModelFacts, bounds: Bounds
) -> Sampling:
    if asked is not None and asked > facts.max_model_len:
        raise BadRequest(
            f"{param}={quoted(asked)} cannot be greater than the model's context of "
            f"{facts.max_model_len} tokens.",
            param=param,
        )
    limit = facts.max_model_len if asked is None else asked
    return replace(plan.sampling, max_tokens=min(limit, bounds.max_tokens or limit))
