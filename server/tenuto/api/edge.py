"""The outermost layer: request id, drain gate, key, clock, and an envelope for the uncaught."""

import logging
import time
import traceback
from collections.abc import Awaitable, Iterator, Mapping

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenuto.access.keys import Key
from tenuto.api.accounting import usage_of
from tenuto.api.exchange import (
    CLIENT_LEFT,
    SCOPE_KEY,
    Exchange,
    patience_of,
    request_id_of,
)
from tenuto.api.services import Services
from tenuto.errors import (
    ApiError,
    InternalError,
    NotAdmin,
    RateLimited,
    TooLarge,
    Unavailable,
    UnknownKey,
    encoded,
)
from tenuto.observe.logs import AnsweredLine
from tenuto.observe.metrics import Answered

logger = logging.getLogger(__name__)
OPEN_PATHS = {"/", "/health", "/health/liveliness", "/health/readiness", "/openapi.json", "/docs"}
OPEN_PREFIXES = ("/static/",)
# Asked for every few seconds, whatever happens.
POLLED = {"/metrics", "/status"}
ADMIN_PREFIX = "/admin/"
SAFETY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
LOOPBACK = {"127.0.0.1", "::1"}
FORWARDING = {b"x-forwarded-for", b"forwarded", b"x-real-ip"}


class Edge:
    """`fixed`: the routes without a parameter in their path, by method and path. They are called
    directly, as a search and FastAPI's own layers cost more than all the rest up to the model."""

    def __init__(
        self, app: ASGIApp, services: Services, fixed: Mapping[tuple[str, str], APIRoute]
    ) -> None:
        self._app = app
        self._services = services
        self._fixed = fixed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = Exchange(request_id_of(scope), patience_s=patience_of(scope))
        began = time.monotonic()
        is_open = _is_open(scope["path"])
        if not is_open:
            self._services.gate.enter()
        try:
            await self._answer(scope, receive, _noting(send, exchange, began), exchange, is_open)
        finally:
            exchange.release()
            if not is_open:
                self._services.gate.leave()
            self._record(scope, exchange, time.monotonic() - began)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, is_open: bool
    ) -> None:
        try:
            self._admit(scope, exchange, is_open)
            await self._route(scope, receive, send)
        except ApiError as error:
            await error_response(await self._told(error, scope))(scope, receive, send)
        except ClientDisconnect:
            # It left while it sent its request: nobody is there to answer.
            return
        except Exception as error:
            # Without the exception's text, which may quote the request.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("request %s: %s\n%s", exchange.request_id, type(error).__name__, frames)
            if exchange.started:
                raise
            await error_response(InternalError())(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._fixed.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response = await route.endpoint(Request(scope, receive))
        await response(scope, receive, send)

    def _admit(self, scope: Scope, exchange: Exchange, is_open: bool) -> None:
        limit = self._services.bounds.header_bytes
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limit:
            raise TooLarge(f"The request's headers must be at most {limit} bytes.", status=431)
        if is_open:
            return
        if self._services.gate.draining:
            raise Unavailable("The server is shutting down. Please retry.")
        if scope["path"] == "/metrics" and _is_near(scope):
            return
        exchange.key = self._services.keys.authenticate(_authorization(scope))
        if scope["path"].startswith(ADMIN_PREFIX):
            self._require_owner(exchange.key, scope)

    def _require_owner(self, key: Key | None, scope: Scope) -> None:
        if key is None or key.role != "admin":
            raise NotAdmin("This route needs an admin key.", param="key")
        if not (self._services.admin_remote or _is_near(scope)):
            raise NotAdmin("This route is off for other hosts (TENUTO_ADMIN_REMOTE).")

    async def _told(self, error: ApiError, scope: Scope) -> ApiError:
        """The error, later for those who guess keys."""
        if not isinstance(error, UnknownKey):
            return error
        try:
            await self._services.guesses.failed(_host(scope) or "")
        except RateLimited as limited:
            return limited
        return error

    def _record(self, scope: Scope, exchange: Exchange, duration_s: float) -> None:
        status = exchange.status if exchange.ended else CLIENT_LEFT
        if exchange.is_metered and self._services.recorder is not None:
            row = usage_of(exchange, scope["route"].name, status, duration_s)
            self._services.recorder.add(row)
        answer = Answered(
            getattr(scope.get("route"), "path", "unmatched"),
            exchange.model,
            status,
            duration_s,
            exchange.queue_s,
            exchange.first_token_s,
        )
        self._count(exchange, answer)
        line = AnsweredLine(exchange.request_id, scope["method"], answer)
        # Who tries keys is to be seen.
        is_probe = _is_probe(scope["path"]) and status != UnknownKey.status
        logger.log(line.level(self._services.slow_s, is_probe=is_probe), line)

    def _count(self, exchange: Exchange, answer: Answered) -> None:
        metrics, model, tally = self._services.metrics, exchange.model, exchange.tally
        metrics.answered(answer)
        if answer.first_token_s is not None:
            self._services.history.first_token(exchange.engine, answer.first_token_s)
        if exchange.gaps is not None:
            metrics.gaps(model, exchange.gaps)
        if answer.status == CLIENT_LEFT and model:
            metrics.aborted(model)
        if tally is not None:
            cached = sum(tally.cached_tokens.values())
            metrics.used(model, tally.prompt_tokens, cached, tally.completion_tokens)


def error_response(error: ApiError) -> Response:
    return Response(encoded(error), error.status, error.headers, "application/json")


def _noting(send: Send, exchange: Exchange, began: float) -> Send:
    def noting(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            exchange.started = True
            message["headers"] = [*message.get("headers", ()), *_headers_of(exchange)]
        elif not message.get("more_body"):
            exchange.ended = True
            # Before the client can send its next request.
            exchange.release()
        elif exchange.first_token_s is None and message["body"].startswith(b"data:"):
            exchange.first_token_s = time.monotonic() - began
        return send(message)

    return noting


def _headers_of(exchange: Exchange) -> Iterator[tuple[bytes, bytes]]:
    yield b"x-request-id", exchange.request_id.encode()
    yield from SAFETY_HEADERS
    if exchange.admission is not None:
        for name, value in exchange.admission.headers().items():
            yield name.encode(), value.encode()


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _is_probe(path: str) -> bool:
    return _is_open(path) or path in POLLED


def _host(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _is_near(scope: Scope) -> bool:
    """A request that a proxy passed on is not near, even if both are on this host; nor is one that
    only says so."""
    is_forwarded = any(name in FORWARDING for name, _ in scope["headers"])
    return _host(scope) in LOOPBACK and not is_forwarded


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return str(value.decode("latin-1"))
    return None
