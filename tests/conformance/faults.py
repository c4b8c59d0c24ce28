"""One-fault variants of a server: an ASGI wrapper whose paths below `/faults/<id>` are wrong in
one way each."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/faults/"
# How much longer than it was waited for, the rest of an edited stream takes.
PACE = 2.5
DONE = "[DONE]"
DATA = "data: "
Headers = list[tuple[bytes, bytes]]


@dataclass
class Exchange:
    """A request and, once there is one, its whole answer; a hook changes what it likes of it."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""
    status: int = 200
    answer_headers: Headers = field(default_factory=list)
    answer: bytes = b""

    @property
    def streamed(self) -> bool:
        kinds = [value for name, value in self.answer_headers if name == b"content-type"]
        return any(kind.startswith(b"text/event-stream") for kind in kinds)

    @property
    def asked(self) -> Any:
        """The request's JSON body; None when it is none."""
        return _parsed(self.body)


Hook = Callable[[Exchange], None]
FramesHook = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Fault:
    """`response` sees every answer whole, and of a streamed one what `frames` made of its events
    (without the empty lines between them); `holds_back` sends such a stream in one piece. Only
    requests whose path holds `path_part` are wrong."""

    id: str
    why: str
    request: Hook | None = None
    response: Hook | None = None
    frames: FramesHook | None = None
    shield_disconnect: bool = False
    holds_back: bool = False
    path_part: str = ""

    @property
    def buffers(self) -> bool:
        return self.response is not None or self.frames is not None


class Faulty:
    """The app itself, and below `/faults/<id>` the same app with that fault."""

    def __init__(self, app: ASGIApp, faults: Iterable[Fault]) -> None:
        self._app = app
        self._faults: dict[str, Fault] = {}
        for fault in faults:
            assert fault.id not in self._faults, fault.id
            self._faults[fault.id] = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope)
        if fault is None:
            await self._app(scope, receive, send)
            return
        scope = _without_prefix(scope, fault)
        if fault.path_part not in scope["path"]:
            await self._app(scope, receive, send)
            return
        if fault.shield_disconnect:
            receive, send = _deaf(receive), _careless(send)
        exchange = Exchange(scope["method"], scope["path"], list(scope["headers"]))
        if fault.request is not None:
            scope, receive = await _edited(scope, receive, exchange, fault.request)
        if fault.buffers:
            send = _Buffer(send, exchange, fault).send
        await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> Fault | None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            return None
        return self._faults.get(scope["path"].removeprefix(PREFIX).partition("/")[0])


class _Buffer:
    """Holds an answer back until it is whole, then sends what the fault makes of it."""

    def __init__(self, send: Send, exchange: Exchange, fault: Fault) -> None:
        self._send = send
        self._exchange = exchange
        self._fault = fault
        self._began = 0.0

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if message["type"] == "http.response.start":
            self._began = time.monotonic()
            exchange.status = message["status"]
            exchange.answer_headers = list(message.get("headers", ()))
            return
        exchange.answer += message.get("body", b"")
        if message.get("more_body"):
            return
        if self._fault.frames is not None and exchange.streamed:
            exchange.answer = _joined(self._fault.frames(_split(exchange.answer)))
        if self._fault.response is not None:
            self._fault.response(exchange)
        headers = _of_length(exchange.answer_headers, exchange.answer)
        await self._send(
            {"type": "http.response.start", "status": exchange.status, "headers": headers}
        )
        await self._send_body(exchange)

    async def _send_body(self, exchange: Exchange) -> None:
        """A stream keeps its pace, so that no fault is also that of holding it back."""
        first, rest = exchange.answer, b""
        if exchange.streamed and not self._fault.holds_back:
            first, mark, rest = first.partition(b"\n\n")
            first += mark
            if rest:
                await self._send({"type": "http.response.body", "body": first, "more_body": True})
                await asyncio.sleep(PACE * (time.monotonic() - self._began))
                first = rest
        await self._send({"type": "http.response.body", "body": first})


def only(path_part: str, fault: Fault) -> Fault:
    """The fault, on those paths alone."""
    return replace(fault, path_part=path_part)


def chain(*hooks: Hook) -> Hook:
    """Hooks of one kind, one after the other."""

    def chained(exchange: Exchange) -> None:
        for hook in hooks:
            hook(exchange)

    return chained


def edit_body(function: Callable[[dict[str, Any]], object]) -> Hook:
    """Over the request's JSON object: changed in place."""

    def edit(exchange: Exchange) -> None:
        body = exchange.asked
        if isinstance(body, dict):
            function(body)
            exchange.body = _dumped(body)

    return edit


def drop_fields(*names: str) -> Hook:
    return edit_body(lambda body: [body.pop(name, None) for name in names])


def set_field(name: str, value: Any) -> Hook:
    return edit_body(lambda body: body.update({name: value}))


def edit_json(function: Callable[[Any], Any], status: int | None = None) -> Hook:
    """Over the parsed answer: changed in place, or replaced by what is returned."""

    def edit(exchange: Exchange) -> None:
        answer = _parsed(exchange.answer)
        if answer is None or (status is not None and exchange.status != status):
            return
        returned = function(answer)
        exchange.answer = _dumped(answer if returned is None else returned)

    return edit


def edit_frames(function: Callable[[list[Any]], list[Any] | None]) -> FramesHook:
    """Over the parsed chunks of a stream: changed in place, or replaced by what is returned.

    The end mark and comments are strings. A string that is no comment becomes an event's data.
    """

    def edit(frames: list[str]) -> list[str]:
        chunks = [_chunk(frame) for frame in frames]
        returned = function(chunks)
        return [_frame(chunk) for chunk in (chunks if returned is None else returned)]

    return edit


def set_status(code: int, when: Callable[[Exchange], bool] = lambda exchange: True) -> Hook:
    def edit(exchange: Exchange) -> None:
        if when(exchange):
            exchange.status = code

    return edit


def drop_header(name: str) -> Hook:
    """Of the answer."""

    def edit(exchange: Exchange) -> None:
        exchange.answer_headers = _without(exchange.answer_headers, name)

    return edit


def set_header(name: str, value: str) -> Hook:
    """Of the answer."""

    def edit(exchange: Exchange) -> None:
        others = _without(exchange.answer_headers, name)
        exchange.answer_headers = [*others, (name.lower().encode(), value.encode())]

    return edit


def _without_prefix(scope: Scope, fault: Fault) -> Scope:
    path = scope["path"].removeprefix(PREFIX + fault.id) or "/"
    # A client may have escaped letters of the prefix, but not its slashes.
    raw = b"".join(scope["raw_path"].split(b"/", 3)[3:])
    return {**scope, "path": path, "raw_path": b"/" + raw}


async def _edited(
    scope: Scope, receive: Receive, exchange: Exchange, hook: Hook
) -> tuple[Scope, Receive]:
    """The request as the hook leaves it, once it has come whole."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return scope, _replayed(message, receive)
        exchange.body += message.get("body", b"")
        more = message.get("more_body", False)
    hook(exchange)
    headers = _of_length(exchange.headers, exchange.body)
    changes: dict[str, Any] = {"method": exchange.method, "headers": headers}
    if exchange.path != scope["path"]:
        changes |= {"path": exchange.path, "raw_path": exchange.path.encode()}
    whole = {"type": "http.request", "body": exchange.body, "more_body": False}
    return {**scope, **changes}, _replayed(whole, receive)


def _replayed(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _deaf(receive: Receive) -> Receive:
    async def deaf() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            await asyncio.Event().wait()
        return message

    return deaf


def _careless(send: Send) -> Send:
    async def careless(message: Message) -> None:
        with suppress(OSError):
            await send(message)

    return careless


def _of_length(headers: Headers, body: bytes) -> Headers:
    """With its length corrected where one is announced."""
    length = str(len(body)).encode()
    return [(name, length if name == b"content-length" else value) for name, value in headers]


def _without(headers: Headers, name: str) -> Headers:
    return [header for header in headers if header[0] != name.lower().encode()]


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _split(stream: bytes) -> list[str]:
    return [frame for frame in stream.decode().split("\n\n") if frame]


def _joined(frames: list[str]) -> bytes:
    return "".join(f"{frame}\n\n" for frame in frames).encode()


def _chunk(frame: str) -> Any:
    payload = frame.removeprefix(DATA)
    if payload == DONE or not frame.startswith(DATA):
        return payload
    return json.loads(payload)


def _frame(chunk: Any) -> str:
    if isinstance(chunk, str):
        return chunk if chunk.startswith(":") else DATA + chunk
    return DATA + _dumped(chunk).decode()
