"""The requests of the contract. Types only: ranges are in `bounds`, contradictions in `judge`.

A null field counts as left out. Unknown fields are kept aside, so that they can be reported.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tenuto.wire.tools import Call, Tool, ToolChoice

TokenIds = list[Annotated[int, Field(ge=0)]]


class Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = Field(description="A model id or alias; the model in the path wins.")


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart | str] | None = None
    tool_calls: list[Call] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class GenerationRequest(Request):
    """What chat and text completions share."""

    n: int | None = Field(None, description="Number of choices to return.")
    best_of: int | None = Field(
        None, description="Candidates to generate; the n most likely are returned."
    )
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    temperature: float | None = Field(None, description="0 is greedy.")
    top_p: float | None = None
    top_k: int | None = Field(None, description="-1 and 0: all tokens.")
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    detokenize: bool | None = Field(None, description="false: token ids instead of text.")
    skip_special_tokens: bool | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: TokenIds | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    priority: int | None = None

    user: Any = Field(None, description="Accepted without effect.")
    metadata: Any = Field(None, description="Accepted without effect.")
    store: Any = Field(None, description="Accepted without effect.")
    service_tier: Any = Field(None, description="Accepted without effect.")


class ChatRequest(GenerationRequest):
    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = Field(None, description="A synonym of max_tokens.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
    chat_template: Any = Field(None, description="Refused: templates belong to the registry.")
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = Field(
        None, description="`required` and a named function are enforced on any model."
    )
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = Field(None, description="Handed to the chat template.")


class CompletionRequest(GenerationRequest):
    prompt: str | list[str] | TokenIds | list[TokenIds]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class EmbeddingRequest(Request):
    input: str | list[str] | TokenIds | list[TokenIds]
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32; default float."
    )
    dimensions: int | None = Field(None, description="For models trained to be cut.")
    user: Any = Field(None, description="Accepted without effect.")


class CounterRequest(Request):
    prompt: str | list[str] | TokenIds | list[TokenIds] | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class TokenizeRequest(Request):
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Request):
    tokens: TokenIds


def as_batch(prompt: str | list[Any]) -> list[Any]:
    """The prompts of a `prompt` or `input`: each a string or a list of token ids."""
    is_one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
    return [prompt] if is_one else list(prompt)
