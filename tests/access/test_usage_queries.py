"""Totals against sums over the rows, and what else is asked of usage."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert

from tenuto.access.schema import keys, usage
from tenuto.access.usage import DAY_S, UsageRow, day_of
from tenuto.access.usage_queries import (
    GROUPS,
    as_csv,
    columns,
    recent,
    tokens_this_month,
    totals,
)
from tests.access.conftest import NewUrl
from tests.access.usages import JANUARY_31, a_row, opened, record

FIRST = date(2026, 1, 31)
ROWS = [
    a_row(
        at=JANUARY_31 + (number % 4) * DAY_S + number,
        key_id=f"k{number % 3}",
        model=f"m{number % 2}",
        status=(200, 200, 499, 500, 429)[number % 5],
        prompt_tokens=number,
        cached_tokens=number // 2,
        completion_tokens=number * 3,
        generated_tokens=number * 6,
        duration_s=number / 4,
    )
    for number in range(200)
]
SUMS = columns([])
Days = st.none() | st.integers(-1, 5).map(lambda number: FIRST + timedelta(days=number))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, new_url: NewUrl) -> Iterator[Engine]:
    with opened(tmp_path_factory.mktemp("state"), new_url()) as engine:
        record(engine, ROWS)
        yield engine


@pytest.fixture
def engine(tmp_path: Path, new_url: NewUrl) -> Iterator[Engine]:
    with opened(tmp_path, new_url()) as engine:
        yield engine


def group_of(row: UsageRow, by: set[str]) -> tuple[str, ...]:
    named = {"day": day_of(row.at), "key": row.key_id, "model": row.model}
    return tuple(named[name] for name in GROUPS if name in by)


def added_up(rows: list[UsageRow]) -> list[float]:
    failed = sum(row.status in (500, 429) for row in rows)
    tokens = [sum(getattr(row, name) for row in rows) for name in SUMS[2:]]
    return [len(rows), failed, *tokens]


@settings(max_examples=60, deadline=None)
@given(by=st.sets(st.sampled_from(list(GROUPS))), since=Days, until=Days)
def test_totals_are_the_sums_over_the_rows(
    filled: Engine, by: set[str], since: date | None, until: date | None
) -> None:
    groups: dict[tuple[str, ...], list[UsageRow]] = defaultdict(list)
    for row in ROWS:
        day = date.fromisoformat(day_of(row.at))
        if (since or day) <= day <= (until or day):
            groups[group_of(row, by)].append(row)
    if not by:
        # One row, also over nothing.
        groups.setdefault((), [])
    found = totals(filled, by, since, until)
    names = [name for name in GROUPS if name in by]
    assert [tuple(row[name] for name in names) for row in found] == sorted(groups)
    assert [[row[name] for name in SUMS] for row in found] == [
        pytest.approx(added_up(groups[group])) for group in sorted(groups)
    ]


def a_key(key_id: str, note: str) -> dict[str, Any]:
    known = {"prefix": "sk-", "role": "user", "created_at": 0, "first_priority": 0}
    digest = key_id.encode() * 16
    return {**known, "id": key_id, "digest": digest, "note": note, "last_priority": 0}


def test_a_key_has_its_note(engine: Engine) -> None:
    record(engine, [a_row(key_id=key_id) for key_id in ("k1", "k2", "")])
    with engine.begin() as connection:
        connection.execute(insert(keys), [a_key("k1", "Ada, her phone"), a_key("k3", "unused")])
    rows = totals(engine, ["model", "key"])
    assert list(rows[0]) == columns(["key", "model"])
    assert list(rows[0])[:3] == ["key", "note", "model"]
    assert [(row["key"], row["note"]) for row in rows] == [
        ("", ""),
        ("k1", "Ada, her phone"),
        ("k2", ""),
    ]
    assert as_csv(["model", "key"], rows).splitlines()[2] == (
        'k1,"Ada, her phone",m1,1,0,0,0,0,0,0.0'
    )


def test_csv_of_nothing_has_its_header() -> None:
    assert as_csv(["day"], []) == f"day,{','.join(SUMS)}\n"


def test_tokens_of_the_month(engine: Engine) -> None:
    noon = {"prompt_tokens": 3, "completion_tokens": 4, "generated_tokens": 100}
    record(
        engine,
        [
            a_row(at=JANUARY_31, key_id="k1", **noon),
            a_row(at=JANUARY_31 + DAY_S - 0.001, key_id="k1", model="m2", **noon),
            a_row(at=JANUARY_31 + DAY_S, key_id="k1", prompt_tokens=1),
            a_row(at=JANUARY_31 + 28 * DAY_S, key_id="k2", generated_tokens=2),
            a_row(at=JANUARY_31 - 30 * DAY_S, key_id="k3", prompt_tokens=5),
            a_row(at=JANUARY_31 - 31 * DAY_S, key_id="k3", prompt_tokens=6),
        ],
    )
    assert tokens_this_month(engine, JANUARY_31 + DAY_S - 1) == {"k1": 206, "k3": 5}
    assert tokens_this_month(engine, JANUARY_31 + DAY_S) == {"k1": 1, "k2": 2}
    assert tokens_this_month(engine, JANUARY_31 + 60 * DAY_S) == {}


@pytest.mark.parametrize("limit", [1, 16, 17, 100])
def test_the_newest_requests_of_a_key(filled: Engine, limit: int) -> None:
    own = sorted((row for row in ROWS if row.key_id == "k2"), key=lambda row: -row.at)
    assert recent(filled, "k2", limit) == own[:limit]


def test_the_newest_requests_when_most_are_gone(engine: Engine) -> None:
    rows = [a_row(at=JANUARY_31 + day * DAY_S) for day in range(5)]
    record(engine, rows)
    with engine.begin() as connection:
        connection.execute(delete(usage).where(usage.c.at < rows[3].at))
    assert recent(engine, "k1", 4) == [rows[4], rows[3]]
    assert recent(engine, "k2") == []
