"""Steps folded to whole choices, and the choice among candidates (`best_of`)."""

from collections.abc import AsyncIterable
from dataclasses import dataclass, field, replace

from tenuto.engine.types import Delta, FinishReason, Step, TokenLogprob


@dataclass(slots=True)
class Choice:
    """One candidate, whole. `cumulative_logprob` is the raw model's, natural logarithm."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *delta.logprobs]
        if delta.cumulative_logprob is not None:
            self.cumulative_logprob = delta.cumulative_logprob
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_reason = delta.stop_reason if delta.finish_reason else self.stop_reason


@dataclass(slots=True)
class Folded:
    """All choices by index, and per prompt position what only the first step says."""

    choices: dict[int, Choice] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob | None]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Of all candidates."""
        return sum(len(choice.token_ids) for choice in self.choices.values())

    def add(self, step: Step) -> None:
        self.cached_tokens[step.prompt_index] = step.cached_tokens
        if step.prompt_logprobs is not None:
            self.prompt_logprobs[step.prompt_index] = step.prompt_logprobs
        for delta in step.deltas:
            self.choices.setdefault(delta.index, Choice(delta.index)).add(delta)


async def fold(steps: AsyncIterable[Step], into: Folded | None = None) -> Folded:
    """`into` has what there is so far, also when it ends early."""
    folded = Folded() if into is None else into
    async for step in steps:
        folded.add(step)
    return folded


def best(choices: list[Choice], n: int) -> list[Choice]:
    """The `n` most likely of one prompt's candidates, most likely first, renumbered from 0.

    What vLLM did while it had `best_of`: ranked by cumulative raw log-probability, ties by index.
    """
    ranked = sorted(choices, key=lambda choice: (-choice.cumulative_logprob, choice.index))
    return [replace(choice, index=rank) for rank, choice in enumerate(ranked[:n])]


def chosen(folded: Folded, num_prompts: int, candidates: int, n: int) -> list[Choice]:
    """The choices to return, in the order of their index (`prompt position * n + rank`)."""
    result: list[Choice] = []
    for position in range(num_prompts):
        first = position * candidates
        group = [folded.choices[index] for index in range(first, first + candidates)]
        picked = best(group, n) if candidates > n else group
        result.extend(
            replace(choice, index=position * n + rank) for rank, choice in enumerate(picked)
        )
    return result
