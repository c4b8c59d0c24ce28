"""What passes between the API and an engine. Knows neither HTTP nor vLLM.

What also passes between hosts is laid out as arrays there, without the names of its fields.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]
Task = Literal["generate", "embed"]
# What a cluster has of a model: nothing, replicas that start, some that serve, none that could.
Deployment = Literal["cold", "loading", "ready", "failed"]
# 1 keeps the weights in the host's memory; 2 keeps nothing, and wakes from the checkpoint.
SleepLevel = Literal[1, 2]
# How alike two embeddings of the same text by the same weights are at least.
MIN_COSINE = 0.99
# Of which model a task is that belongs to an engine: what vLLM logs in the serving process does not
# say it.
TASK_OF_MODEL: ContextVar[str | None] = ContextVar("task_of_model", default=None)


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """An adapter of a model, by the id that `Sampling.lora` names."""

    id: str
    adapter: Path
    rank: int


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything that is needed to start one model, resolved to this host.

    `devices` are the GPUs that its engine sees, as the server counts them; all when there are none.
    `sleep` makes the engine able to, where the platform is.
    """

    model_id: str
    checkpoint: Path
    task: Task = "generate"
    max_model_len: int | None = None
    quantization: str | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    chat_template: str | None = None
    trust_remote_code: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    loras: tuple[LoraSpec, ...] = ()
    devices: tuple[int, ...] = ()
    sleep: bool = False
    engine_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scale:
    """How many engines a cluster runs of a model: as many as keep the requests that each has at
    `target_ongoing_requests`. With `min_replicas` 0 the last one ends after `idle_s` without a
    request, and the next request starts one."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: int = 64
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Deployed:
    """A model of a cluster. Under one `name` all replicas read the same checkpoint."""

    name: str
    spec: EngineSpec
    scale: Scale


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`max_model_len` in tokens (prompt and completion together). `dimensions` are the sizes
    to which the model's embeddings may be cut; none unless it was trained for that."""

    max_model_len: int
    vocab_size: int
    quantization: str | None = None
    dimensions: Sequence[int] = ()


class ToolCall(msgspec.Struct):
    """A call, or what one gained: `id` and `name` come with its first piece."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Parsed(msgspec.Struct):
    """What a piece of text turned out to be."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


class AnswerParser(Protocol):
    """Tells content, reasoning and tool calls of one choice apart; fed in pieces, or with all."""

    def feed(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Parsed: ...

    def whole(self, text: str, token_ids: Sequence[int]) -> Parsed: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt: `token_ids` is exactly what the engine sees, and what is counted.

    `parser` makes one parser per choice, for a model that has parsers; with `keep_special_tokens`
    it needs them in the text. Constraints begin where the reasoning has `reasoning_ended`; a model
    that reasons may decide that by the arguments of its template.
    """

    token_ids: list[int]
    text: str | None = None
    parser: Callable[[], AnswerParser] | None = None
    keep_special_tokens: bool = False
    reasoning_ended: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """`param` is the request's field that holds it, to blame."""

    content: str | list[int]
    add_special_tokens: bool = True
    truncate_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """`parse_tools`: the model may call them of its own accord, and its parser finds the calls."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    truncate_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    parse_tools: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """Structured output. `param` is the request's field, to blame when `value` is invalid."""

    param: str
    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    value: Any


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How to generate; every value is already judged against the contract's bounds.

    `stream` asks for one `Step` per engine output (deltas); otherwise one `Step` carries
    every candidate whole. `lora` is the id of one of the engine's adapters. Of `priority` the lower
    number goes first.
    """

    max_tokens: int
    n: int = 1
    stream: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    constraint: Constraint | None = None
    cache_salt: str | None = None
    priority: int = 0
    lora: str | None = None


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    token: str | None
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One position. `top` holds the most likely tokens, best first; natural logarithms."""

    token_id: int
    token: str | None
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class Delta(msgspec.Struct, array_like=True):
    """What one candidate gained since the last `Step`; `token` texts are None when not decoded."""

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    cumulative_logprob: float | None = None

    def add(self, more: "Delta") -> None:
        """What the same candidate gained next; neither has log-probabilities."""
        self.text += more.text
        self.token_ids = [*self.token_ids, *more.token_ids]
        self.finish_reason, self.stop_reason = more.finish_reason, more.stop_reason


class Step(msgspec.Struct, array_like=True):
    """One output of the engine for one prompt, the `prompt_index`-th of the request.

    `prompt_logprobs` comes with the first step: one entry per prompt token, None for the first.
    """

    deltas: list[Delta]
    cached_tokens: int = 0
    prompt_index: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None


class Steps(Protocol):
    """Steps as they come. Closing it ends what makes them."""

    def __aiter__(self) -> AsyncIterator[Step]: ...

    def __anext__(self) -> Awaitable[Step]: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Now: requests given to it, with each choice as one, and of them what its scheduler runs and
    lets wait; the share of the KV cache that they have, 0 to 1. Since its start: preemptions, the
    prompt tokens looked up in the prefix cache and found there, tokens generated."""

    unfinished_requests: int
    running_sequences: int = 0
    waiting_sequences: int = 0
    kv_cache_usage: float = 0.0
    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Canary:
    """What a model makes of a fixed prompt: tokens, or an embedding model's vector."""

    token_ids: tuple[int, ...] = ()
    vector: tuple[float, ...] = ()

    def agrees(self, other: "Canary") -> bool:
        """Whether the same weights can have made both. What is not a number agrees with nothing."""
        if self.token_ids != other.token_ids or len(self.vector) != len(other.vector):
            return False
        return not self.vector or _cosine(self.vector, other.vector) >= MIN_COSINE


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.hypot(*one) * math.hypot(*other)
    return dot / lengths if lengths else math.nan
