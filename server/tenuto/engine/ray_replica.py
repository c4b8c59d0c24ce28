"""One engine of a model, as an actor of Ray Serve's. Runs on the host that has its GPUs."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from tenuto.engine.base import Backend, Engine
from tenuto.engine.channel import Accepted, Address, Ended, Failure, Links, Measured, Stepped
from tenuto.engine.types import EngineSpec, Prompt, Sampling
from tenuto.errors import CheckpointError, EngineLost

logger = logging.getLogger(__name__)
MEASURE_EVERY_S = 0.25
# What a lost engine's requests are told must be out before the process ends.
LAST_WORDS_S = 0.5


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A request on its way to a replica, and where its steps are to go."""

    to: Address
    stream: int
    request_id: str
    token_ids: list[int]
    sampling: Sampling
    reasoning_ended: bool
    template_kwargs: Mapping[str, Any]

    @property
    def prompt(self) -> Prompt:
        return Prompt(
            self.token_ids,
            reasoning_ended=self.reasoning_ended,
            template_kwargs=self.template_kwargs,
        )


class Embed(msgspec.Struct, frozen=True, array_like=True):
    """A request for an embedding, and whom to tell how busy the engine is."""

    to: Address
    request_id: str
    token_ids: list[int]
    dimensions: int | None


_encoder = msgspec.msgpack.Encoder()
_calls = msgspec.msgpack.Decoder(Call)
_embeds = msgspec.msgpack.Decoder(Embed)


def packed(request: Call | Embed) -> bytes:
    return _encoder.encode(request)


class Replica:
    """Ray Serve counts its calls, and a call lasts as long as its request: so it knows how busy
    each replica is. The first argument of a call is the router's alone."""

    # Ray Serve awaits it.
    async def __init__(  # type: ignore[misc]
        self, make_backend: Callable[[], Backend], spec: EngineSpec
    ) -> None:
        if not spec.checkpoint.is_dir():
            raise CheckpointError(f"{spec.checkpoint} is not on the host {os.uname().nodename}")
        self._links = Links(spec.model_id)
        self._engine: Engine = await make_backend().engine(spec)
        self._tasks = {asyncio.create_task(self._measure()), asyncio.create_task(self._watch())}

    async def generate(self, prefix: Sequence[int], packed_call: bytes) -> None:
        """Returns when all steps were sent."""
        call = _calls.decode(packed_call)
        link = await self._links.to(call.to)
        link.send(Accepted(call.stream))
        has_begun = False
        steps = self._engine.generate(call.prompt, call.sampling, call.request_id)
        try:
            async with aclosing(steps):
                async for step in steps:
                    link.send(Stepped(call.stream, step))
                    has_begun = True
                    await link.ready()
            ended = Ended(call.stream)
        except Exception as error:
            ended = Ended(call.stream, await _failure(error, call.request_id, has_begun))
        link.send(ended)

    async def embed(self, prefix: Sequence[int], packed_embed: bytes) -> list[float] | Failure:
        asked = _embeds.decode(packed_embed)
        await self._links.to(asked.to)
        try:
            prompt = Prompt(asked.token_ids)
            return await self._engine.embed(prompt, asked.dimensions, asked.request_id)
        except Exception as error:
            return await _failure(error, asked.request_id)

    async def wake(self) -> None:
        """Nothing more to do: that somebody asks makes Ray Serve start a first replica."""

    async def _measure(self) -> None:
        """Says how busy the engine is, while that changes."""
        said = None
        while True:
            await asyncio.sleep(MEASURE_EVERY_S)
            stats = self._engine.stats()
            if stats != said:
                self._links.send_all(Measured(stats))
                said = stats

    async def _watch(self) -> None:
        """A replica without its engine ends; Ray Serve starts another."""
        await self._engine.wait_lost()
        logger.error("the engine has ended, and this replica with it")
        await asyncio.sleep(LAST_WORDS_S)
        os._exit(1)

    async def __del__(self) -> None:
        """Called by Ray Serve once the running requests have ended."""
        for task in self._tasks:
            task.cancel()
        await self._engine.close(0)


async def _failure(error: Exception, request_id: str, has_begun: bool = False) -> Failure:
    """What a client may know of it."""
    if isinstance(error, EngineLost) and not has_begun:
        # By then this process has ended as well, and another replica has the request.
        await asyncio.sleep(2 * LAST_WORDS_S)
    failure = Failure.of(error)
    if failure.kind == "internal":
        # Without its text, which may quote the request.
        logger.error("request %s: %s", request_id, type(error).__name__)
    return failure
