"""Scripted engines that a test leads step by step."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.engine.types import EngineSpec, Prompt, Sampling, Step


@dataclass
class StepwiseEngine(FakeEngine):
    """Hands out `allowed` steps, then waits for `go`; counts what it has `handed` out."""

    allowed: int | None = 1
    handed: int = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        async with aclosing(super().generate(prompt, sampling, request_id)) as steps:
            async for step in steps:
                self.handed += 1
                if self.handed == self.allowed:
                    self.go.clear()
                yield step


@dataclass
class StepwiseBackend(FakeBackend):
    allowed: int | None = 1

    async def engine(self, spec: EngineSpec) -> StepwiseEngine:
        engine = StepwiseEngine(self.reply, allowed=self.allowed)
        self.engines[spec.model_id] = engine
        return engine


@dataclass
class FaultyEngine(FakeEngine):
    """Breaks after its first step, in words that quote the request."""

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        async with aclosing(super().generate(prompt, sampling, request_id)) as steps:
            async for step in steps:
                yield step
                raise ZeroDivisionError(prompt.text)


@dataclass
class FaultyBackend(FakeBackend):
    async def engine(self, spec: EngineSpec) -> FaultyEngine:
        engine = FaultyEngine(self.reply)
        self.engines[spec.model_id] = engine
        return engine
