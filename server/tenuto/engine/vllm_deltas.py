"""The deltas of one sequence, without what vLLM makes of each of them.

Of every token vLLM's output processor makes a `RequestOutput` and a `CompletionOutput`, 27 fields,
and hands them on through an `asyncio.Event` and two generators: half of what a token costs there.
Here its record of the request writes into a queue of ours. Detokenizing, stop strings and all else
stay vLLM's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from tenuto.engine.types import Delta, Sampling, Step
from tenuto.engine.vllm_errors import translated
from tenuto.engine.vllm_params import judge_finish, step

Add = Callable[[], Awaitable[RequestOutputCollector]]


class DeltaQueue:
    """What the sequence gained and nobody took yet, as one delta: a slow reader gets it merged."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, error: Exception) -> None:
        """What vLLM calls when the engine has ended."""
        self._error = error
        self._wake()

    def add(self, delta: Delta, cached_tokens: int) -> None:
        if self._step is None:
            self._step = Step([delta], cached_tokens)
            self._wake()
        else:
            self._step.deltas[0].add(delta)

    async def get(self) -> Step:
        """Errors: `EngineLost`."""
        while self._step is None:
            if self._error is not None:
                with translated():
                    raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._step = self._step, None
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class DeltaState(RequestState):
    """vLLM's record of one request, that hands on deltas and makes no outputs."""

    queue: DeltaQueue

    def make_request_output(
        self,
        new_token_ids: list[int],
        pooling_output: Any,
        finish_reason: FinishReason | None,
        stop_reason: int | str | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        finished = finish_reason is not None
        if self.output_kind is RequestOutputKind.FINAL_ONLY:
            if not finished:
                return
            new_token_ids = self.detokenizer.output_token_ids
        text = self.detokenizer.get_next_output_text(finished, delta=True)
        delta = Delta(0, text, new_token_ids)
        if finished:
            delta.finish_reason, delta.stop_reason = str(finish_reason), stop_reason  # type: ignore[assignment]
        self.queue.add(delta, self.num_cached_tokens or 0)


class DeltaSteps:
    """`AsyncLLM.generate` for one sequence of which only the deltas are wanted, or one of all.

    `add` gives the request to `llm`, on the first step. Closing aborts it there. Errors: those of
    `add`, `EngineLost`, `BadRequest`.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        add: Callable[[], Awaitable[RequestOutputCollector]],
        sampling: Sampling,
    ) -> None:
        self._llm = llm
        self._add = add
        self._sampling = sampling
        self._queue: DeltaQueue | None = None
        self._id = ""
        self._ended = False

    def __aiter__(self) -> "DeltaSteps":
        return self

    async def __anext__(self) -> Step:
        if self._ended:
            raise StopAsyncIteration
        queue = self._queue or await self._begin()
        gained = await queue.get()
        if (reason := gained.deltas[0].finish_reason) is not None:
            self._ended = True
            judge_finish(reason, self._sampling)
        return gained

    async def aclose(self) -> None:
        ended, self._ended = self._ended, True
        if self._queue is not None and not ended:
            await self._llm.abort(self._id, internal=True)

    async def _begin(self) -> DeltaQueue:
        collector = await self._add()
        self._id, self._queue = collector.request_id, DeltaQueue()
        if (state := self._llm.output_processor.request_states.get(self._id)) is not None:
            state.__class__, state.queue = DeltaState, self._queue
        with translated():
            early = collector.get_nowait()
        if early is not None:
            came = step(early, self._sampling, first=True)
            self._queue.add(came.deltas[0], came.cached_tokens)
        return self._queue
