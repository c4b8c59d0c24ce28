"""The seam: what the API needs of an engine, and nothing of how vLLM offers it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from tenuto.engine.types import (
    Canary,
    ChatPrompt,
    Deployed,
    Deployment,
    EngineSpec,
    EngineStats,
    ModelFacts,
    Prompt,
    Sampling,
    SleepLevel,
    Steps,
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

    @property
    def can_sleep(self) -> bool:
        """False where the platform cannot, or the spec did not ask for it."""
        ...

    @property
    def start_phases(self) -> Mapping[str, float]:
        """Where the seconds of its start went, in order; phases do not overlap."""
        ...

    def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> Steps:
        """The first step gives the request to the engine, closing them aborts it there."""
        ...

    async def embed(self, prompt: Prompt, dimensions: int | None, request_id: str) -> list[float]:
        """Cancelling aborts the request in the engine."""
        ...

    async def wait_lost(self) -> None:
        """Returns when the engine has ended without being closed."""
        ...

    async def sleep(self, level: SleepLevel) -> None:
        """Gives its memory on the GPU back. Errors: `RuntimeError` while requests are in it or when
        it cannot sleep, `EngineLost`."""
        ...

    async def wake(self) -> None:
        """Takes its memory back, and the weights with it. Errors: `EngineLost`."""
        ...

    async def check(self) -> Canary:
        """Answers a fixed prompt; no request in `stats`. Errors: `EngineLost` when it does not."""
        ...

    def stats(self) -> EngineStats: ...

    async def close(self, drain_s: float) -> None: ...


class Backend(Protocol):
    """Makes prompts and engines. Errors: `EngineStartError`, `CheckpointError`."""

    async def prompts(self, spec: EngineSpec) -> Prompts: ...

    async def engine(self, spec: EngineSpec) -> Engine: ...


class Cluster(Protocol):
    """Runs the engines of models on many hosts. Several front ends may ask for the same. What it
    cannot do now, as `Unavailable`, it may be able to do later."""

    async def deploy(self, models: Sequence[Deployed]) -> Mapping[str, Engine]:
        """By name; returns before they run. What runs as it should is left alone, and what is to
        change is replaced replica by replica, each after its running requests."""
        ...

    async def states(self) -> Mapping[str, tuple[Deployment, str | None]]:
        """Of all that is deployed, by name; and why it failed."""
        ...

    async def retire(self, names: Sequence[str]) -> None:
        """Ends them for every front end, after their running requests."""
        ...

    async def close(self) -> None:
        """Ends what this front end has running there, and nothing else."""
        ...
