"""Steps on their way from replicas to a front end: one connection for all streams between two.

Ray Serve finds the replica, counts its requests and cancels them. Were it to carry the steps as
well, each token would cost the front end several times as much (`docs/scaling.md`). A frame is its
length, 4 bytes, and a list of messages in MessagePack.
"""

import asyncio
import logging
import secrets
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Literal, cast

import msgspec

from tenuto.engine.types import EngineStats, Step
from tenuto.errors import ApiError, BadRequest, EngineLost, InternalError, Unavailable

logger = logging.getLogger(__name__)
SIZE_BYTES = 4
# Log-probabilities of a long prompt are the largest; who has not said hello sends nothing long.
MAX_MESSAGE_BYTES = 256 << 20
MAX_HELLO_BYTES = 4096
# After so long without a word from the other host, its end is taken for granted; it is asked twice.
SILENT_S = 20
HELLO_S = 10.0
SECRET_BYTES = 16


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a front end listens, and what it wants to hear first."""

    host: str
    port: int
    secret: str


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error of a replica's engine, as its type and what a client may know of it."""

    kind: Literal["bad request", "lost", "unavailable", "internal"]
    message: str = ""
    param: str | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        match error:
            case BadRequest():
                return cls("bad request", error.message, error.param)
            case EngineLost():
                return cls("lost")
            case Unavailable():
                return cls("unavailable", error.message)
        return cls("internal")

    def error(self) -> ApiError:
        match self.kind:
            case "bad request":
                return BadRequest(self.message, param=self.param)
            case "lost":
                return EngineLost()
            case "unavailable":
                return Unavailable(self.message)
        return InternalError()


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    secret: str
    model_id: str


class Accepted(msgspec.Struct, array_like=True, tag=1):
    """A replica has the request, and its engine may take its time."""

    stream: int


class Stepped(msgspec.Struct, array_like=True, tag=2):
    stream: int
    step: Step


class Ended(msgspec.Struct, array_like=True, tag=3):
    """Nothing more comes of the stream. `failure`: why, when it did not end by itself."""

    stream: int
    failure: Failure | None = None


class Measured(msgspec.Struct, array_like=True, tag=4):
    """The replica's engine now."""

    stats: EngineStats


Message = Hello | Accepted | Stepped | Ended | Measured
_decoder = msgspec.msgpack.Decoder(list[Message])
_encoder = msgspec.msgpack.Encoder()
_size = struct.Struct(">I")
# A frame's length, and MessagePack's mark and length of a list.
_head = struct.Struct(">IBI")
LIST_MARK = 0xDD


class Inbox:
    """What has come of one stream and was not taken yet: a reader that lags finds it merged.
    `accepted` is set once a replica has the request, or never will."""

    def __init__(self) -> None:
        self.has_begun = self.has_ended = False
        self.accepted = asyncio.Event()
        self.connection: _Connection | None = None
        self._steps: deque[Step] = deque()
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, step: Step) -> None:
        self.has_begun = True
        if not (self._steps and _merged(self._steps[-1], step)):
            self._steps.append(step)
        self._wake()

    def end(self, error: ApiError | None = None) -> None:
        if not self.has_ended:
            self.has_ended, self._error = True, error
            self.accepted.set()
            self._wake()

    async def take(self) -> Step:
        """Errors: what it ended with, once all is taken; `StopAsyncIteration` without one."""
        while not self._steps:
            if self._error is not None:
                raise self._error
            if self.has_ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._steps.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _merged(last: Step, step: Step) -> bool:
    """Whether `last` has taken it in: of one candidate without log-probabilities."""
    if len(last.deltas) != 1 or len(step.deltas) != 1:
        return False
    delta, more = last.deltas[0], step.deltas[0]
    if delta.index != more.index or delta.logprobs is not None or more.logprobs is not None:
        return False
    delta.add(more)
    return True


@dataclass
class Receiver:
    """A front end's end of all connections. To be opened on the event loop that uses it."""

    address: Address
    _waiting: dict[int, Inbox] = field(default_factory=dict)
    _connections: set["_Connection"] = field(default_factory=set)
    _number: int = 0
    _server: asyncio.Server | None = None

    @classmethod
    async def open(cls, host: str) -> "Receiver":
        """On a free port of that address, by which replicas reach this host."""
        receiver = cls(Address(host, 0, secrets.token_hex(SECRET_BYTES)))
        loop = asyncio.get_running_loop()
        receiver._server = await loop.create_server(receiver._connected, host, 0)
        port = receiver._server.sockets[0].getsockname()[1]
        receiver.address = msgspec.structs.replace(receiver.address, port=port)
        return receiver

    def _connected(self) -> "_Connection":
        connection = _Connection(self)
        asyncio.get_running_loop().call_later(HELLO_S, connection.close_stranger)
        return connection

    def add(self, inbox: Inbox) -> int:
        """The number of the stream that fills it."""
        self._number += 1
        self._waiting[self._number] = inbox
        return self._number

    def accepted(self, stream: int) -> Inbox | None:
        """Its inbox, whose connection knows it from now on; None when nobody waits for it."""
        return self._waiting.pop(stream, None)

    def forget(self, stream: int, inbox: Inbox) -> None:
        """What still comes of it is dropped."""
        self._waiting.pop(stream, None)
        if inbox.connection is not None:
            inbox.connection.forget(stream)

    def stats(self, model_id: str) -> list[EngineStats]:
        """What the model's replicas have said last."""
        return [c.stats for c in self._connections if c.model_id == model_id and c.stats]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for inbox in self._waiting.values():
            inbox.end(EngineLost())
        for connection in list(self._connections):
            connection.end()

    def opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    """One replica's, at the front end."""

    def __init__(self, receiver: Receiver) -> None:
        self.model_id: str | None = None
        self.stats: EngineStats | None = None
        self._receiver = receiver
        self._inboxes: dict[int, Inbox] = {}
        self._unread, self._wanted_bytes = bytearray(), 0
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        _notice_silence(transport)
        self._receiver.opened(self)

    def data_received(self, data: bytes) -> None:
        """With each token, nearly: what comes is nearly always whole."""
        if self._unread:
            self._unread += data
            if len(self._unread) < self._wanted_bytes:
                return
            data, self._unread = bytes(self._unread), bytearray()
        begin, end = 0, len(data)
        while (body := begin + SIZE_BYTES) <= end:
            (size,) = _size.unpack_from(data, begin)
            if size > (MAX_HELLO_BYTES if self.model_id is None else MAX_MESSAGE_BYTES):
                return self._close()
            if body + size > end:
                self._wanted_bytes = SIZE_BYTES + size
                break
            begin = body + size
            if not self._understood(data[body:begin]):
                return self._close()
        else:
            self._wanted_bytes = SIZE_BYTES
        if begin < end:
            self._unread += data[begin:]

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.closed(self)
        for inbox in self._inboxes.values():
            # What has not begun can be asked for again.
            if inbox.has_begun:
                inbox.end(EngineLost())

    def end(self) -> None:
        for inbox in self._inboxes.values():
            inbox.end(EngineLost())
        self._close()

    def forget(self, stream: int) -> None:
        self._inboxes.pop(stream, None)

    def close_stranger(self) -> None:
        if self.model_id is None:
            self._close()

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def _understood(self, data: bytes) -> bool:
        """False for what only a stranger would send."""
        try:
            messages = _decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            return False
        if self.model_id is None:
            return self._greeted(messages)
        for message in messages:
            # The one that comes with each token; asked by its type, a match costs twice as much.
            if type(message) is Stepped:
                if (inbox := self._inboxes.get(message.stream)) is not None:
                    inbox.put(message.step)
            else:
                self._took(message)
        return True

    def _took(self, message: Message) -> None:
        match message:
            case Accepted(stream):
                self._accepted(stream)
            case Ended(stream, failure):
                if (inbox := self._inboxes.pop(stream, None)) is not None:
                    inbox.end(failure.error() if failure is not None else None)
            case Measured(stats):
                self.stats = stats

    def _accepted(self, stream: int) -> None:
        if (inbox := self._receiver.accepted(stream)) is not None:
            self._inboxes[stream] = inbox
            inbox.connection = self
            inbox.accepted.set()

    def _greeted(self, messages: list[Message]) -> bool:
        known = self._receiver.address.secret.encode()
        match messages:
            case [Hello(secret, model_id)] if compare_digest(secret.encode(), known):
                self.model_id = model_id
                return True
        logger.warning("somebody who is no replica has connected to this front end")
        return False


class Link(asyncio.Protocol):
    """A replica's end of a connection. What one turn of the event loop sends leaves together."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._pending, self._count = bytearray(_head.size), 0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's can write, and are of no such class.
        self._transport = cast(asyncio.WriteTransport, transport)
        _notice_silence(transport)

    def send(self, message: Message) -> None:
        """Errors: `EngineLost` when the front end is gone; others for what cannot be sent."""
        if self.lost.is_set():
            raise EngineLost
        if self._count == 0:
            asyncio.get_running_loop().call_soon(self.flush)
        begin = len(self._pending)
        try:
            _encoder.encode_into(message, self._pending, -1)
            if len(self._pending) > MAX_MESSAGE_BYTES:
                raise ValueError(f"more than {MAX_MESSAGE_BYTES} bytes")
        except Exception:
            # The other streams go on.
            del self._pending[begin:]
            raise
        self._count += 1

    def flush(self) -> None:
        """What was sent since the last time, as one frame."""
        if self._count:
            assert self._transport is not None
            _head.pack_into(
                self._pending, 0, len(self._pending) - SIZE_BYTES, LIST_MARK, self._count
            )
            self._transport.write(bytes(self._pending))
            del self._pending[_head.size :]
            self._count = 0

    async def ready(self) -> None:
        """Waits while the front end reads more slowly than this end writes."""
        await self._may_write.wait()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        self._may_write.set()


class Links:
    """A replica's connections, each made when its front end first asks for something."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._links: dict[Address, asyncio.Task[Link]] = {}

    async def to(self, address: Address) -> Link:
        """Errors: `OSError` for a front end that cannot be reached."""
        made = self._links.get(address)
        if made is None or (made.done() and _is_over(made)):
            made = self._links[address] = asyncio.create_task(self._connected(address))
        return await asyncio.shield(made)

    def send_all(self, message: Message) -> None:
        for address, made in list(self._links.items()):
            if made.done():
                if _is_over(made):
                    del self._links[address]
                else:
                    made.result().send(message)

    async def _connected(self, address: Address) -> Link:
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(Link, address.host, address.port)
        link.send(Hello(address.secret, self._model_id))
        link.flush()
        return link


def _is_over(made: asyncio.Task[Link]) -> bool:
    return made.cancelled() or made.exception() is not None or made.result().lost.is_set()


def _notice_silence(transport: asyncio.BaseTransport) -> None:
    end: socket.socket = transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S // 2)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENT_S // 4)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
