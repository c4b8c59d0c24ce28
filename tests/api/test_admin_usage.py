"""`GET /admin/usage`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from tenuto.access.usage import DAY_S
from tenuto.api.admin_usage import UsageRoutes
from tenuto.errors import BadRequest
from tests.access.usages import JANUARY_31, a_row, opened, record


@pytest.fixture
def routes(tmp_path: Path) -> Iterator[UsageRoutes]:
    rows = [a_row(at=JANUARY_31 + day * DAY_S, model=f"m{day % 2}") for day in range(4)]
    with opened(tmp_path) as engine:
        record(engine, rows)
        yield UsageRoutes(engine)


async def asked(routes: UsageRoutes, query: str = "") -> Response:
    return await routes.usage(Request({"type": "http", "query_string": query.encode()}))


async def rows(routes: UsageRoutes, query: str = "") -> list[dict[str, Any]]:
    response = await asked(routes, query)
    assert response.media_type == "application/json"
    answer = json.loads(bytes(response.body))
    assert answer["object"] == "list"
    found: list[dict[str, Any]] = answer["data"]
    return found


async def test_by_day_when_nothing_is_said(routes: UsageRoutes) -> None:
    days = [(row["day"], row["requests"]) for row in await rows(routes)]
    assert days == [(f"2026-{day}", 1) for day in ("01-31", "02-01", "02-02", "02-03")]


async def test_by_model_and_key(routes: UsageRoutes) -> None:
    found = await rows(routes, "by=model&by=key&since=2026-02-01&until=2026-02-03")
    assert [(row["key"], row["model"], row["requests"]) for row in found] == [
        ("k1", "m0", 1),
        ("k1", "m1", 2),
    ]


async def test_csv(routes: UsageRoutes) -> None:
    response = await asked(routes, "by=model&format=csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    lines = bytes(response.body).decode().splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        ["model", "requests"],
        ["m0", "2"],
        ["m1", "2"],
    ]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("by=hour", "by"),
        ("by=day&by=", "by"),
        ("since=yesterday", "since"),
        ("until=2026-02-30", "until"),
        ("format=xml", "format"),
    ],
)
async def test_wrong_values(routes: UsageRoutes, query: str, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await asked(routes, query)
    assert caught.value.param == param
