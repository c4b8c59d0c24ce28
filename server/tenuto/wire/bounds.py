"""One table of what a request may ask for. All but the model's own limits are settings."""

from dataclasses import dataclass
from functools import cache

from pydantic import BaseModel, ConfigDict, Field

INT64 = 2**63


class Bounds(BaseModel):
    """Upper limits of a request; each may be set as `TENUTO_BOUNDS__<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(8 << 20, ge=1, description="largest request body")
    header_bytes: int = Field(32 << 10, ge=1024, description="all request headers together")
    messages: int = Field(2048, ge=1, description="messages of a chat")
    prompts: int = Field(128, ge=1, description="prompts of a completion, inputs of embeddings")
    # LangChain sends a thousand at once, OpenAI takes as many as this.
    inputs: int = Field(2048, ge=1, description="inputs in one embeddings request")
    n: int = Field(16, ge=1, description="choices per prompt")
    best_of: int = Field(16, ge=1, description="candidates per prompt")
    stop_strings: int = Field(64, ge=0, description="stop strings")
    stop_characters: int = Field(512, ge=1, description="characters of one stop string")
    logprobs: int = Field(20, ge=0, description="alternatives per token")
    logit_bias: int = Field(1024, ge=0, description="entries of logit_bias")
    bad_words: int = Field(256, ge=0, description="entries of bad_words")
    token_ids: int = Field(1024, ge=0, description="entries of stop_token_ids, allowed_token_ids")
    schema_bytes: int = Field(64 << 10, ge=1, description="a JSON schema")
    schema_patterns: int = Field(256, ge=0, description="patterned properties of a JSON schema")
    regex_bytes: int = Field(2 << 10, ge=1, description="a regex")
    grammar_bytes: int = Field(8 << 10, ge=1, description="a grammar")
    choices: int = Field(1000, ge=1, description="entries of guided_choice")
    tools: int = Field(128, ge=0, description="tools of a chat")
    template_kwargs: int = Field(16, ge=0, description="entries of chat_template_kwargs")
    max_tokens: int | None = Field(None, ge=1, description="cap of max_tokens; unset: the context")


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval, open below where `above` is set. NaN and infinities are outside."""

    low: float
    high: float | None = None
    above: bool = False

    def admits(self, value: float) -> bool:
        if not (self.low < value if self.above else self.low <= value):
            return False
        return value < float("inf") if self.high is None else value <= self.high

    def __str__(self) -> str:
        low = f"{'greater than' if self.above else 'at least'} {self.low}"
        return low if self.high is None else f"{low} and at most {self.high}"


@cache
def ranges(bounds: Bounds) -> dict[str, Range]:
    """The interval of every numeric parameter, by its name."""
    return {
        "temperature": Range(0, 2),
        "top_p": Range(0, 1, above=True),
        "min_p": Range(0, 1),
        "top_k": Range(-1),
        "presence_penalty": Range(-2, 2),
        "frequency_penalty": Range(-2, 2),
        "repetition_penalty": Range(0, above=True),
        "seed": Range(-INT64, INT64 - 1),
        "n": Range(1, bounds.n),
        "best_of": Range(1, bounds.best_of),
        "max_tokens": Range(1),
        "max_completion_tokens": Range(1),
        "min_tokens": Range(0),
        "top_logprobs": Range(0, bounds.logprobs),
        "prompt_logprobs": Range(0, bounds.logprobs),
        "truncate_prompt_tokens": Range(-1),
    }
