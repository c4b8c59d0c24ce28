"""What was asked of the models, for the owner; with an admin key alone."""

import asyncio
from datetime import date

import msgspec
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response

from tenuto.access.usage_queries import GROUPS, as_csv, totals
from tenuto.errors import BadRequest, quoted

FORMATS = ("json", "csv")


class UsageRoutes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def usage(self, request: Request) -> Response:
        """Errors: `BadRequest`, which names the parameter."""
        asked = request.query_params
        by = asked.getlist("by") or ["day"]
        for name in by:
            if name not in GROUPS:
                raise _wrong("by", name, "day, key or model")
        since, until = _day("since", asked.get("since")), _day("until", asked.get("until"))
        form = asked.get("format", "json")
        if form not in FORMATS:
            raise _wrong("format", form, "json or csv")
        rows = await asyncio.to_thread(totals, self._engine, by, since, until)
        if form == "csv":
            return Response(as_csv(by, rows), media_type="text/csv")
        answer = msgspec.json.encode({"data": rows, "object": "list"})
        return Response(answer, media_type="application/json")


def _day(param: str, text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise _wrong(param, text, "a day such as 2026-01-31") from None


def _wrong(param: str, value: object, expected: str) -> BadRequest:
    return BadRequest(f"{param} must be {expected}, got {quoted(value)}.", param=param)
