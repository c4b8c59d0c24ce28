"""Clients that send or read too slowly, or send without end: uvicorn itself has no limits."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tenuto.errors import TooLarge, encoded

logger = logging.getLogger(__name__)
STALLED_S = 60.0
SLACK_BYTES = 64 << 10


class OneWrite:
    """A connection's transport that sends an answer's head together with what comes next. uvicorn
    writes them apart: two system calls, and a client that wakes up twice."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            # In case nothing comes soon.
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TimedProtocol(HttpToolsProtocol):
    """Ends a connection that has not sent a request's headers within `headers_timeout_s`, whose
    headers have no end, or that reads nothing for `stalled_s`. (The time for the body is
    `api/body.py`'s, and the exact size of the headers `api/edge.py`'s.)"""

    headers_timeout_s = 60.0
    header_bytes = 32 << 10
    stalled_s = STALLED_S
    _deadline: asyncio.TimerHandle | None = None
    _stalling: asyncio.TimerHandle | None = None
    _is_in_headers = False
    # Received since the last end of headers or piece of a body.
    _pending_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._begin()

    def data_received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending_bytes > 2 * self.header_bytes + SLACK_BYTES:
            self._refuse()
        elif self._deadline is None and self.cycle is not None and self.cycle.response_complete:
            # The rest of a request that is answered, or what is not yet one: uvicorn has just
            # cancelled its own timer.
            self._begin()

    def on_message_begin(self) -> None:
        self._is_in_headers = True
        if self._deadline is None:
            self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._pending_bytes = 0
        self._end()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalling is None:
            self._stalling = self.loop.call_later(self.stalled_s, self._give_up)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._end_stall()
        super().connection_lost(exc)

    def _begin(self) -> None:
        # Not `close`, which waits until the client has read what was sent.
        self._deadline = self.loop.call_later(self.headers_timeout_s, self.transport.abort)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_stall(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None

    def _give_up(self) -> None:
        logger.info("a client read nothing for %g s: its connection is ended", self.stalled_s)
        self.transport.abort()

    def _refuse(self) -> None:
        # Into an answer that is under way nothing may be written.
        if self._is_in_headers and (self.cycle is None or self.cycle.response_complete):
            limit = self.header_bytes
            message = f"The request's headers must be at most {limit} bytes."
            body = encoded(TooLarge(message, status=431))
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            ending = b"connection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[431] + head.encode() + ending + body)
        self.transport.close()


def timed_protocol(timeout_s: float, header_bytes: int) -> type[TimedProtocol]:
    """uvicorn takes a class."""
    fields = {"headers_timeout_s": timeout_s, "header_bytes": header_bytes}
    return type("TimedProtocol", (TimedProtocol,), fields)
