"""A running generation: one engine request per prompt, merged, primed and closable."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType

from msgspec.structs import replace

from tenuto.engine.base import Engine
from tenuto.engine.types import ModelFacts, Prompt, Sampling, Step, Steps
from tenuto.generation.translate import Plan, fitted


class Generation:
    """Steps of all prompts of a request, in the order in which the engine makes them.

    A choice's index is `prompt position * candidates + candidate`. An object and not a generator,
    since a generator that was never started runs no cleanup. Closing aborts the engine's requests.
    """

    def __init__(
        self,
        source: Steps,
        prompts: Sequence[Prompt],
        on_close: Callable[[], None],
    ) -> None:
        self.prompts = prompts
        self._source = source
        self._on_close: Callable[[], None] | None = on_close
        self._first: Step | None = None

    async def prime(self) -> None:
        """Waits for the first step, so that a failure still has its status. Closes on failure."""
        try:
            self._first = await self._source.__anext__()
        except BaseException:
            # Whoever started it still owns what `on_close` would release.
            self._on_close = None
            await self.aclose()
            raise

    def __aiter__(self) -> "Generation":
        return self

    def __anext__(self) -> Awaitable[Step]:
        return self._source.__anext__() if self._first is None else self._taken(self._first)

    async def _taken(self, first: Step) -> Step:
        self._first = None
        return first

    async def aclose(self) -> None:
        """Aborts in the engine, then releases: a model must not be evicted while it decodes."""
        try:
            await self._source.aclose()
        finally:
            if self._on_close is not None:
                release, self._on_close = self._on_close, None
                release()

    async def __aenter__(self) -> "Generation":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def start(
    engine: Engine,
    prompts: Sequence[Prompt],
    plan: Plan,
    facts: ModelFacts,
    param: str,
    on_close: Callable[[], None],
) -> Generation:
    """A primed generation. `param` is the prompt's field, to blame when it leaves no room.

    `on_close` is called once, after the engine has let go; never when this raises.
    """
    samplings = [_sampling_of(prompt, plan, facts, param) for prompt in prompts]
    sources = [
        engine.generate(prompt, sampling, os.urandom(16).hex())
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    source = sources[0] if len(sources) == 1 else merged(sources, plan.sampling.n)
    generation = Generation(source, prompts, on_close)
    await generation.prime()
    return generation


def _sampling_of(prompt: Prompt, plan: Plan, facts: ModelFacts, param: str) -> Sampling:
    sampling = fitted(plan.sampling, len(prompt.token_ids), facts, param)
    return replace(sampling, skip_special_tokens=False) if prompt.keep_special_tokens else sampling


async def merged(sources: Sequence[Steps], candidates: int) -> AsyncGenerator[Step, None]:
    """Steps of all sources as they come, with indices shifted to the source's choices."""
    async with AsyncExitStack() as stack:
        for source in sources:
            await stack.enter_async_context(aclosing(source))
        waiting = {asyncio.ensure_future(_next(s)): position for position, s in enumerate(sources)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    position = waiting.pop(task)
                    step = task.result()
                    if step is None:
                        continue
                    waiting[asyncio.ensure_future(_next(sources[position]))] = position
                    for delta in step.deltas:
                        delta.index += position * candidates
                    step.prompt_index = position
                    yield step
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def _next(source: Steps) -> Step | None:
    return await anext(source, None)
