"""The answers of the contract. A field that is UNSET is left out."""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class FunctionCall(msgspec.Struct):
    name: str | UnsetType
    arguments: str


class MessageToolCall(msgspec.Struct):
    """`index` only in streams, `id`, `type` and the name only in a call's first chunk there."""

    function: FunctionCall
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessage(msgspec.Struct):
    """`reasoning_content` (LiteLLM's name) and `reasoning` (vLLM's) carry the same text."""

    content: str | None
    role: str = "assistant"
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    finish_reason: str | None
    stop_reason: str | int | None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    object: str = "chat.completion"
    prompt_logprobs: Any = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: Any = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str
    object: str = "text_completion"


class Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class ModelCard(msgspec.Struct):
    """`created` and `owned_by` are the hosted API's constants."""

    id: str
    object: str = "model"
    created: int = 1677610602
    owned_by: str = "openai"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class ModelInfo(msgspec.Struct):
    model_name: str
    litellm_params: dict[str, Any]
    model_info: dict[str, Any]


class ModelInfoList(msgspec.Struct):
    data: list[ModelInfo]


class ModelRow(msgspec.Struct):
    """One model now. `kv_cache_bytes` are of each GPU; `load_s` and `wake_s` what these took the
    last time."""

    id: str
    state: str
    reason: str | None
    pinned: bool
    running_requests: int
    waiting_requests: int
    can_sleep: bool | None
    devices: list[int]
    kv_cache_bytes: int | None
    load_s: float | None
    wake_s: float | None


class AdminModel(ModelRow):
    """As its owner sees it. `start_phases_s`: where the seconds of the engine's start went."""

    failed_wakes: int
    start_phases_s: dict[str, float]


class AdminModelList(msgspec.Struct):
    data: list[AdminModel]
    object: str = "list"


class ModelHistory(msgspec.Struct):
    """Lists of one length: a point each some seconds. What an interval has none of is null."""

    at: list[float]
    running_requests: list[int]
    waiting_requests: list[int]
    tokens_per_s: list[float]
    ttft_p50_s: list[float | None]
    ttft_p99_s: list[float | None]
    kv_cache_usage: list[float | None]


class ModelStatus(ModelRow):
    task: str
    weights_bytes: int | None
    history: ModelHistory


class Status(msgspec.Struct):
    """Times in seconds since the epoch."""

    now: float
    started_at: float
    interval_s: int
    version: str
    models: list[ModelStatus]
    object: str = "status"


class AdminKey(msgspec.Struct):
    """A stored key; its `secret` once, when it is new. A limit that is null does not limit."""

    id: str
    prefix: str
    state: str
    role: str
    note: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    models: tuple[str, ...] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    parallel_requests: int | None
    tokens_per_month: int | None
    first_priority: int
    last_priority: int
    secret: str | UnsetType = UNSET


class AdminKeyList(msgspec.Struct):
    data: list[AdminKey]
    object: str = "list"


class TokenCount(msgspec.Struct):
    total_tokens: int
    request_model: str
    model_used: str
    tokenizer_type: str = "huggingface_tokenizer"


class Tokens(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(msgspec.Struct):
    prompt: str
