"""Tokens of one request, as they are answered and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tenuto.engine.types import Prompt, Step
from tenuto.wire.responses import PromptTokensDetails, Usage


@dataclass(slots=True)
class Tally:
    """`completion_tokens` counts the returned choices; cached tokens are part of the prompt's.
    `finish` is how the last choice ended."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: dict[int, int] = field(default_factory=dict)
    finish: str | None = None

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> "Tally":
        return cls(prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts))

    def add(self, step: Step) -> None:
        self.cached_tokens[step.prompt_index] = step.cached_tokens
        for delta in step.deltas:
            self.completion_tokens += len(delta.token_ids)
            if delta.finish_reason is not None:
                self.finish = delta.finish_reason

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(sum(self.cached_tokens.values())),
        )
