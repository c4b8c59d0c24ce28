"""Answers that must notice a client who leaves: the SSE response, and the unstreamed wait."""

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from types import TracebackType
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tenuto.api.exchange import CLIENT_LEFT
from tenuto.engine.types import Step, Steps
from tenuto.errors import ApiError, InternalError
from tenuto.generation.frames import KEEP_ALIVE, Frames, error_frame
from tenuto.observe.metrics import Gaps

logger = logging.getLogger(__name__)
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class Replay:
    """Steps that are already there, as a source that can be closed."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = iter(steps)

    def __aiter__(self) -> "Replay":
        return self

    async def __anext__(self) -> Step:
        for step in self._steps:
            return step
        raise StopAsyncIteration

    async def aclose(self) -> None:
        pass


async def deferred(begin: Callable[[], Awaitable[Steps]]) -> AsyncGenerator[Step, None]:
    """Steps of which even the source is still awaited."""
    async with aclosing(await begin()) as steps:
        async for step in steps:
            yield step


class CancelledBy:
    """Cancels its block as soon as `watch` has ended, and ends quietly then: what `asyncio.timeout`
    does for time. A task for each of the two, and a wait for both, would cost a request 80 us."""

    def __init__(self, watch: Coroutine[Any, Any, None]) -> None:
        self._watch = watch
        self._is_inside = self._is_cancelled = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._before, self._is_inside = task, task.cancelling(), True
        self._watching = asyncio.create_task(self._watch)
        self._watching.add_done_callback(self._ended)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._is_inside = False
        self._watching.cancel()
        if not self._is_cancelled:
            return False
        return self._task.uncancel() <= self._before and kind is asyncio.CancelledError

    def _ended(self, watching: asyncio.Task[None]) -> None:
        if watching.cancelled():
            return
        # A fault in it is the connection's: nobody is left to be told, and asyncio need not.
        watching.exception()
        if self._is_inside:
            self._is_cancelled = self._task.cancel()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`, which is cancelled when the client leaves first.

    Then nobody sees the 499.
    """
    with CancelledBy(_left(receive)):
        return await work
    return Response(status_code=CLIENT_LEFT)


class EventStream(Response):
    """Server-sent events made of steps.

    Starlette's own streaming response leaves its iterator open in three of four kinds of
    disconnect; this one closes `steps` whatever happens. The next step is asked for only after the
    last was sent, so a slow reader gets merged deltas and no queue grows. With `at_once` a comment
    is sent before the first step is awaited.
    """

    def __init__(
        self,
        steps: Steps,
        frames: Frames,
        keep_alive_s: float,
        headers: Mapping[str, str],
        gaps: Gaps,
        *,
        at_once: bool = False,
    ) -> None:
        self.status_code = 200
        self.background = None
        # Without a body, so that no content-length is announced.
        self.init_headers({**HEADERS, **headers})
        self._steps = steps
        self._frames = frames
        self._keep_alive_s = keep_alive_s
        self._gaps = gaps
        self._at_once = at_once
        self._last_sent_s = 0.0
        self._sending = False
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        async with aclosing(self._steps):
            with CancelledBy(self._watch(receive, send)):
                await self._send_all(send)

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": list(self.raw_headers)}
        )
        if self._at_once:
            await self._send(send, KEEP_ALIVE, more=True)
        pending, event_s = self._frames.opening(), 0.0
        try:
            async for step in self._steps:
                pending += self._frames.step(step)
                if pending:
                    await self._send(send, pending, more=True)
                    pending = b""
                    # Comments are sent meanwhile, into a silence that is one gap.
                    if event_s:
                        self._gaps.add(self._last_sent_s - event_s)
                    event_s = self._last_sent_s
                # What gathered while the socket was blocked can take seconds to encode.
                if self._gone:
                    return
            pending += self._frames.closing()
        except ApiError as error:
            pending += error_frame(error)
        except Exception as error:
            logger.error("a stream failed: %s", type(error).__name__)
            pending += error_frame(InternalError())
        await self._send(send, pending, more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending = False
        self._last_sent_s = self._loop.time()

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Returns when the client has left; meanwhile sends a comment into every long silence."""
        loop = self._loop
        self._last_sent_s = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(self._last_sent_s + self._keep_alive_s):
                    await _left(receive)
                self._gone = True
                return
            except TimeoutError:
                silent_s = loop.time() - self._last_sent_s
                if silent_s >= self._keep_alive_s:
                    if self._sending:
                        self._last_sent_s = loop.time()
                    else:
                        await self._send(send, KEEP_ALIVE, more=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
