"""vLLM's sockets to its engine without what zmq's asyncio sockets do around each message.

There a message costs two turns of the event loop, several questions to the socket and a timer: of
a short request's time a sixth. Here it is sent and taken at once, and waited for by its descriptor.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio
from vllm.v1.engine.core_client import AsyncMPClient


class DirectSocket(zmq.asyncio.Socket):
    """What `AsyncMPClient` calls of a socket; for one event loop. Errors: `zmq.ZMQError`."""

    _shadow_sock: "zmq.Socket[bytes]"
    _loop: asyncio.AbstractEventLoop | None = None
    _waiter: "asyncio.Future[None] | None" = None

    async def recv_multipart(self, *, copy: bool) -> Sequence[Any]:  # type: ignore[override]
        while True:
            try:
                parts: Sequence[Any] = self._shadow_sock.recv_multipart(zmq.NOBLOCK, copy=copy)
                return parts
            except zmq.Again:
                await self._readable()

    def send_multipart(self, parts: Any, **options: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """Never blocks: vLLM sets no limit to what gathers in these sockets."""
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(self._shadow_sock.send_multipart(parts, zmq.NOBLOCK, **options))
        return sent

    def close(self, linger: int | None = None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self.fileno())
            self._loop = None
        super().close(linger)

    async def _readable(self) -> None:
        """The descriptor tells of a change once, and of no message that was there before: only a
        vain try to take one makes sure that the next is told."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self.fileno(), self._wake)
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        else:
            # Where nobody takes it the descriptor would stay readable, and the loop awake.
            self._shadow_sock.get(zmq.EVENTS)


def make_direct(client: AsyncMPClient) -> None:
    """Before its first message. vLLM asks what class its sockets have, so they become of ours."""
    for socket in (client.input_socket, client.resources.output_socket):
        assert type(socket) is zmq.asyncio.Socket
        socket.__class__ = DirectSocket
