"""One kept HTTP/1.1 connection that asks, and notes when each piece of text arrived.

It shares the cores with the server it measures, so it has to cost little: 10 µs of processor time
for each event of 16 streams with uvloop, where httpx takes 53 µs. Times are not the loop's: uvloop
has whole milliseconds, of when it last looked.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import msgspec

READ_BYTES, MAX_UNREAD_BYTES, MAX_DETAIL = 2**16, 16 * 2**20, 200
# Where an event has its text; a role, a finish reason and the usage may come in others.
TEXTS = ("content", "text", "reasoning", "reasoning_content", "tool_calls")


@dataclass(slots=True)
class Answer:
    """What became of one request; times are those of `time.monotonic()`, in seconds. `due`: when it
    should have been sent; `texts`: the arrival of each event with text; `error`: a status or a kind
    of failure, with what was said of it in `detail`."""

    due: float
    sent: float
    ended: float = 0.0
    texts: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    counted: int | None = None
    error: str | None = None
    detail: str = ""

    def failed(self, kind: str, detail: object = "") -> None:
        """What failed first is what counts."""
        if self.error is None:
            self.error, self.detail = kind, str(detail)[:MAX_DETAIL]

    @property
    def tokens(self) -> int:
        """Of the completion, as the server counts them; else one for each event with text."""
        return len(self.texts) if self.counted is None else self.counted


class Address:
    """Where requests for one target go; `url` with or without /v1. Errors: ValueError."""

    def __init__(self, url: str, route: str, key: str | None) -> None:
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(f"not the address of a server: {url!r}")
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host, self.port = parts.hostname, parts.port or (443 if self.tls else 80)
        self.url = parts.geturl()
        self._head = (
            f"POST {parts.path}/v1/{route} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"{f'authorization: Bearer {key}' if key else 'accept: */*'}\r\n"
            "content-type: application/json\r\naccept-encoding: identity\r\ncontent-length: "
        ).encode()

    def request(self, content: bytes) -> bytes:
        return b"%b%d\r\n\r\n%b" % (self._head, len(content), content)


class Client:
    """Asks one at a time over a connection that it renews. The parser calls its `on_` methods."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, content: bytes, due: float) -> Answer:
        """Never raises for what a server does. The time allowed counts from `due`, too."""
        self._answer = answer = Answer(due, sent=time.monotonic())
        try:
            if answer.sent >= due + self._timeout_s:
                raise TimeoutError
            async with asyncio.timeout(due + self._timeout_s - answer.sent):
                await self._exchange(self._address.request(content))
        except TimeoutError:
            answer.failed("timeout")
        except (OSError, UnicodeError) as error:
            answer.failed("connection", error)
        except httptools.HttpParserError as error:
            answer.failed("protocol", error.__context__ or error)
        if answer.error is not None:
            self.close()  # What is left of this answer must not reach the next request.
        answer.ended = time.monotonic()
        return answer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Errors: OSError; UnicodeError for what is no name."""
        host, port, tls = self._address.host, self._address.port, self._address.tls
        async with asyncio.timeout(self._timeout_s):
            self._streams = await asyncio.open_connection(host, port, ssl=tls)
        return self._streams

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _exchange(self, request: bytes) -> None:
        """A server may close a kept connection just when it is used again; clients try anew."""
        is_new = self._streams is None
        reader, writer = self._streams or await self.connect()
        self._parser, self._now, self._unread = httptools.HttpResponseParser(self), 0.0, b""
        self._is_stream = self._is_done = self._is_whole = False
        try:
            writer.write(request)
            while not self._is_whole:
                if not (data := await reader.read(READ_BYTES)):
                    raise ConnectionError("it ended before the answer did")
                self._now = time.monotonic()
                self._parser.feed_data(data)
        except (ConnectionError, RuntimeError):  # The latter: uvloop, of a write after a reset.
            if is_new or self._now:
                raise
            self.close()
            await self._exchange(request)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._is_stream = value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        self._unread += body
        if self._is_stream:
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self._event(line[5:].strip())
        if len(self._unread) > MAX_UNREAD_BYTES:
            raise ValueError("the answer is too large")

    def on_message_complete(self) -> None:
        self._is_whole, status = True, self._parser.get_status_code()
        if status != 200:
            self._answer.failed(str(status), self._unread.decode(errors="replace"))
        elif not self._is_stream:
            self._event(self._unread)
        elif not self._is_done:
            self._answer.failed("incomplete", "the stream ended without [DONE]")

    def _event(self, data: bytes) -> None:
        """An answer that is not streamed is one as well, with all of its text."""
        if data == b"[DONE]":
            self._is_done = True
            return
        event = msgspec.json.decode(data)
        if error := event.get("error"):
            self._answer.failed("stream", error)
        if usage := event.get("usage"):
            self._answer.prompt_tokens = int(usage["prompt_tokens"])
            self._answer.counted = int(usage["completion_tokens"])
        said = (choice.get("delta") or choice for choice in event.get("choices") or ())
        if self._is_stream and any(text.get(name) for text in said for name in TEXTS):
            self._answer.texts.append(self._now)
