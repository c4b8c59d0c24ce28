"""Request bodies: bounded, decoded, typed, and with every field that has no effect named."""

import asyncio
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tenuto.api.services import Services
from tenuto.errors import BadRequest, TooLarge, TooSlow
from tenuto.wire.parse import decode, ignored_fields, parse

R = TypeVar("R", bound=BaseModel)
IGNORED_HEADER = "x-tenuto-ignored-params"
STRICT_HEADER = "x-tenuto-strict-params"
# SillyTavern alone sends fifty foreign fields; proxies refuse headers of 8 KiB.
MAX_HEADER_BYTES = 4096
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


async def wire_request(request: Request, kind: type[R], route: str, services: Services) -> R:
    """Errors: `InvalidRequest`, `BadRequest`, `TooLarge`, `TooSlow`; with strict parameters
    `BadRequest` for a field that nothing acts upon."""
    body = decode(await _arrived(request, services))
    model = request.path_params.get("model")
    wire = parse(kind, body | {"model": model} if model else body, route)
    ignored = ignored_fields(wire)
    strict = request.headers.get(STRICT_HEADER, "").lower() in ("1", "true", "yes")
    if ignored and (strict or services.strict_params):
        name = _safe(ignored[0])
        raise BadRequest(
            f"{name} is not a parameter that this server acts upon, and strict parameters are on.",
            param=name,
        )
    return wire


def ignored_header(wire: BaseModel) -> dict[str, str]:
    ignored = ignored_fields(wire)
    if not ignored:
        return {}
    names = ",".join(_safe(name) for name in ignored)
    if len(names) > MAX_HEADER_BYTES:
        names = names[:MAX_HEADER_BYTES].rpartition(",")[0]
    return {IGNORED_HEADER: names}


def json_response(
    answer: msgspec.Struct, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    return Response(msgspec.json.encode(answer), status, headers, "application/json")


async def _arrived(request: Request, services: Services) -> bytes:
    """Errors: `TooLarge`, `TooSlow`."""
    try:
        async with asyncio.timeout(services.request_timeout_s):
            return await _read(request, services.bounds.body_bytes)
    except TimeoutError:
        # What is still to come would be taken for the next request.
        raise TooSlow(
            f"The request did not arrive within {services.request_timeout_s:g} s.",
            param="request_body",
            headers={"connection": "close"},
        ) from None


async def _read(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(
                f"The request body must be at most {limit} bytes.", status=413, param="request_body"
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _safe(name: str) -> str:
    """A field's name as a header may carry it: the names are the client's."""
    return UNSAFE.sub("?", name[:64])
