"""The only way to a server: one request out, one exchange back, whatever the server does."""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx

from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.scrubbing import without_key

WRONG_KEY = "sk-this-key-was-never-handed-out"
MIN_KEY_LENGTH = 8
CONNECT_S = 10.0
# What is unpacked can be much larger than what was sent, and is measured too late.
PLAIN = {"accept-encoding": "identity"}
MAX_ANSWER_BYTES = 16 * 2**20
MAX_LINE_BYTES = 2**20
# After so many requests in a row without a whole answer no other is sent: the run ends by itself.
MAX_UNANSWERED = 4
MAX_RATE_LIMIT_WAITS = 5
MAX_RETRY_AFTER_S = 65.0
# Of a key whose limit is to be met: more requests a minute than this are not spent on it.
MAX_LIMIT = 10
# A minute may end in between, and the next one's requests have to be spent, too.
MAX_UNTIL_LIMITED = 2 * MAX_LIMIT + 1
RUNNING_METRICS = re.compile(
    r"^(?:tenuto_engine_unfinished_requests|vllm:num_requests_(?:running|waiting))\{[^}]*\}"
    r" (\d+(?:\.\d*)?(?:e\+?\d+)?)$",
    re.M,
)


def running_requests(metrics: str) -> float | None:
    """Requests that the server says it is working on; None when its metrics do not tell."""
    values = [float(value) for value in RUNNING_METRICS.findall(metrics)]
    return sum(values) if values else None


@dataclass
class Patience:
    """What a whole run has had to wait for: requests in a row without a whole answer, and waits
    that the server asked for."""

    unanswered: int = 0
    rate_limited: int = 0
    waited_in_vain: bool = False


@dataclass
class Server:
    """Sends requests to a base URL, with one of two keys, which no exchange will hold. `timeout_s`
    bounds a whole answer."""

    base_url: str
    key: str | None = None
    timeout_s: float = 60.0
    limited_key: str | None = None
    client: httpx.AsyncClient = field(default_factory=lambda: _client(None), repr=False)
    patience: Patience = field(default_factory=Patience)

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        """Never raises for what a server does. Once `leave` is set, the client goes away."""
        if request.until == "limited":
            return await self._until_limited(request)
        if request.until is not None:
            return await self._until(request)
        exchange = await self._once(request, leave)
        if not request.patient:
            # A key that had to wait before has a limit of its own, which this may be.
            is_own = request.auth == "key" and self.patience.rate_limited > 0
            exchange.untried = exchange.status == 429 and is_own
            return exchange
        for attempt in range(MAX_RATE_LIMIT_WAITS):
            # An exhausted quota would make each of hundreds of requests wait for minutes.
            if exchange.status != 429 or self.patience.waited_in_vain:
                break
            self.patience.rate_limited += 1
            await asyncio.sleep(retry_after_s(exchange.headers, attempt))
            exchange = await self._once(request, leave)
        if exchange.status == 429:
            self.patience.waited_in_vain = exchange.untried = True
        return exchange

    async def close(self) -> None:
        await self.client.aclose()

    @asynccontextmanager
    async def one_connection(self) -> AsyncIterator["Server"]:
        """The same server through a connection that is shared with nobody."""
        client = _client(1)
        try:
            yield replace(self, client=client)
        finally:
            await client.aclose()

    async def _once(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        exchange = Exchange(request)
        if self.patience.unanswered >= MAX_UNANSWERED:
            exchange.failure = f"not sent: {MAX_UNANSWERED} requests in a row got no whole answer"
            exchange.untried = True
            return exchange
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout_s):
                await (self._twice(exchange) if leave is None else self._left(exchange, leave))
            self.patience.unanswered = 0
        except TimeoutError:
            self.patience.unanswered += 1
            exchange.failure = f"no complete answer within {self.timeout_s:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self.patience.unanswered += 1
            exchange.failure = explained(error)
        except Unreadable as error:
            exchange.failure = str(error)
        exchange.elapsed_s = time.monotonic() - began
        self._forget_keys(exchange)
        return exchange

    def _forget_keys(self, exchange: Exchange) -> None:
        for key in (self.key, self.limited_key):
            # A shorter one may be a word of the answer, and is no secret.
            if key is None or len(key) < MIN_KEY_LENGTH:
                continue
            exchange.text = without_key(exchange.text, key)
            exchange.failure = exchange.failure and without_key(exchange.failure, key)
            exchange.headers = {n: without_key(v, key) for n, v in exchange.headers.items()}

    async def _twice(self, exchange: Exchange) -> None:
        """A server may close a kept connection just when it is used again; clients try anew."""
        try:
            await self._exchange(exchange)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            if exchange.status is not None:
                raise
            await self._exchange(exchange)

    async def _exchange(self, exchange: Exchange) -> None:
        request, url = exchange.request, f"{self.base_url}{exchange.request.path}"
        headers, began = self._headers(request), time.monotonic()
        async with self.client.stream(
            request.method, url, content=request.content, headers=headers
        ) as answer:
            exchange.status = answer.status_code
            exchange.headers = dict(answer.headers)
            exchange.connection = _connection(answer)
            content = await read(answer, lambda: _note_first(exchange, began))
        try:
            exchange.text = content.decode()
        except UnicodeDecodeError:
            exchange.text = content.decode(errors="replace")
            raise Unreadable("the answer is not UTF-8") from None

    async def _left(self, exchange: Exchange, leave: asyncio.Event) -> None:
        """Cancelling the work closes its connection."""
        work = asyncio.ensure_future(self._exchange(exchange))
        left = asyncio.ensure_future(leave.wait())
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            exchange.left = not work.done()
            if work.done():
                work.result()
        finally:
            work.cancel()
            left.cancel()
            await asyncio.wait({work, left})

    async def _until(self, request: Request) -> Exchange:
        began = time.monotonic()
        while True:
            exchange = await self._once(request)
            exchange.elapsed_s = time.monotonic() - began
            is_busy = bool(running_requests(exchange.text))
            if is_busy == (request.until == "busy") or exchange.elapsed_s >= request.within_s:
                return exchange
            await asyncio.sleep(0.02)

    async def _until_limited(self, request: Request) -> Exchange:
        """The first answer that is not a success."""
        for _ in range(MAX_UNTIL_LIMITED):
            exchange = await self._once(request)
            if exchange.status != 200:
                break
        return exchange

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {"content-type": "application/json"} if request.content is not None else {}
        match request.auth:
            case "key" if self.key is not None:
                headers["authorization"] = f"Bearer {self.key}"
            case "limited" if self.limited_key is not None:
                headers["authorization"] = f"Bearer {self.limited_key}"
            case "wrong":
                headers["authorization"] = f"Bearer {WRONG_KEY}"
            case "malformed":
                headers["authorization"] = self.key or WRONG_KEY
        return headers | request.headers


class Unreadable(Exception):
    """An answer that is too large, too long a line, or no text."""


async def read(answer: httpx.Response, on_piece: Callable[[], None]) -> bytes:
    """The decoded body. Errors: `Unreadable`."""
    content, line_bytes = bytearray(), 0
    is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
    async for piece in answer.aiter_bytes():
        on_piece()
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise Unreadable(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        first, *rest = piece.split(b"\n")
        longest = max(line_bytes + len(first), *map(len, rest), 0)
        line_bytes = len(rest[-1]) if rest else line_bytes + len(first)
        if is_stream and longest > MAX_LINE_BYTES:
            raise Unreadable(f"a line of the stream is longer than {MAX_LINE_BYTES} bytes")
    return bytes(content)


def _note_first(exchange: Exchange, began: float) -> None:
    if exchange.first_s is None:
        exchange.first_s = time.monotonic() - began


def explained(error: Exception) -> str:
    """In words that say what the server did, and nothing of the client's insides."""
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.UnsupportedProtocol():
            return "cannot connect"
        case httpx.RemoteProtocolError():
            return f"the connection ended before the answer did, or it is no HTTP ({error})"
        case httpx.DecodingError():
            return "the answer's content-encoding does not match its content"
        case _:
            return f"the connection broke ({type(error).__name__})"


def retry_after_s(headers: Mapping[str, str], attempt: int) -> float:
    """Seconds or a date, as RFC 9110 has it; longer each time for a server that does not say."""
    said = headers.get("retry-after", "")
    try:
        wait_s = float(said)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            wait_s = 2.0**attempt
    # In this order NaN is the least.
    return max(0.05, min(wait_s, MAX_RETRY_AFTER_S))


def _client(max_connections: int | None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=None)
    # The run's own timeouts bound the whole answer; a proxy of the environment would be in between.
    timeout = httpx.Timeout(None, connect=CONNECT_S)
    return httpx.AsyncClient(
        timeout=timeout, limits=limits, trust_env=False, headers=PLAIN, verify=_tls()
    )


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: reading the authorities takes longer than many a request."""
    return httpx.create_ssl_context(trust_env=False)


def _connection(answer: httpx.Response) -> int:
    stream = answer.extensions.get("network_stream")
    address: Any = stream.get_extra_info("client_addr") if stream else None
    return int(address[1]) if address else 0
