"""The seam: what the API needs of an engine, and nothing of how vLLM offers it."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from tenuto.engine.types import (
    ChatPrompt,
    EngineSpec,
    EngineStats,
    ModelFacts,
    Prompt,
    Sampling,
    Step,
    TextPrompt,
)


class Prompts(Protocol):
    """Renders, counts and decodes for one model, without its weights.

    `bounded` refuses a prompt that is longer than the model's context. Errors: `BadRequest`
    with the param to blame.
    """

    facts: ModelFacts

    async def chat(self, chat: ChatPrompt, *, bounded: bool = True) -> Prompt: ...

    async def text(self, text: TextPrompt, *, bounded: bool = True) -> Prompt: ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]: ...


class Engine(Protocol):
    """One loaded model, for its task alone. Errors of a request: `EngineLost`, `BadRequest`."""

    @property
    def capacity(self) -> int:
        """How many sequences it should be given at once: what it runs, and a few that wait."""
        ...

    def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        """Closing the iterator aborts the request in the engine."""
        ...

    async def embed(self, prompt: Prompt, dimensions: int | None, request_id: str) -> list[float]:
        """Cancelling aborts the request in the engine."""
        ...

    async def wait_lost(self) -> None:
        """Returns when the engine has ended without being closed."""
        ...

    def stats(self) -> EngineStats: ...

    async def close(self, drain_s: float) -> None: ...


class Backend(Protocol):
    """Makes prompts and engines. Errors: `EngineStartError`, `CheckpointError`."""

    async def prompts(self, spec: EngineSpec) -> Prompts: ...

    async def engine(self, spec: EngineSpec) -> Engine: ...
