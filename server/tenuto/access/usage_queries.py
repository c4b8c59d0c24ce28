"""Questions about usage. The sums by day answer them, so that months cost little.

Errors of all: `Unavailable` for a database that does not answer.
"""

import csv
import io
from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, Engine, cast, func, select, true

from tenuto.access.database import transaction
from tenuto.access.schema import keys, usage, usage_by_day
from tenuto.access.usage import DAY_S, SUMMED, UsageRow

GROUPS = {
    "day": usage_by_day.c.day,
    "key": usage_by_day.c.key_id,
    "model": usage_by_day.c.model,
}
Row = dict[str, Any]


def totals(
    engine: Engine, by: Collection[str], since: date | None = None, until: date | None = None
) -> list[Row]:
    """Sums over the days `since` to `until`, both included, in UTC: a row for each combination of
    `by`, some of `GROUPS`, in their order. Its fields are `columns(by)`; `duration_s` is seconds.
    """
    day = usage_by_day.c.day
    groups = [column.label(name) for name, column in GROUPS.items() if name in by]
    query = (
        select(*groups, *(_sum(name) for name in SUMMED))
        .where(day >= since.isoformat() if since else true())
        .where(day <= until.isoformat() if until else true())
        .group_by(*groups)
        .order_by(*groups)
    )
    with transaction(engine) as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
        notes = _notes(connection) if "key" in by else {}
    return [_row(row | {"note": notes.get(row.get("key"), "")}, by) for row in rows]


def columns(by: Collection[str]) -> list[str]:
    """The fields of a row of `totals`; a key is followed by its owner's note."""
    names = [name for name in GROUPS if name in by]
    if "key" in names:
        names.insert(names.index("key") + 1, "note")
    return [*names, *SUMMED]


def as_csv(by: Collection[str], rows: Iterable[Row]) -> str:
    """Rows of `totals`, under a line with the names of their fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(by), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def tokens_this_month(engine: Engine, now: float) -> dict[str, int]:
    """Tokens of prompts and of all candidates by key id, as limits count them, in the month (UTC)
    of `now`, in seconds since 1970; a key that was not used in it is absent."""
    month = datetime.fromtimestamp(now, UTC).strftime("%Y-%m")
    key_id, day = usage_by_day.c.key_id, usage_by_day.c.day
    query = (
        select(key_id, _sum("prompt_tokens") + _sum("generated_tokens"))
        .where(day >= f"{month}-01", day <= f"{month}-31")
        .group_by(key_id)
    )
    with transaction(engine) as connection:
        return {key: tokens for key, tokens in connection.execute(query)}


def recent(engine: Engine, key_id: str, limit: int = 20) -> list[UsageRow]:
    """The newest requests of a key, the newest first: those of them that retention has left."""
    with transaction(engine) as connection:
        days = _last_days(connection, key_id, limit)
        if not days:
            return []
        query = (
            select(*(usage.c[name] for name in UsageRow.__struct_fields__))
            .where(usage.c.key_id == key_id)
            # No index has the keys: without their days all rows would be read for a few.
            .where(usage.c.at >= _start(days[-1]), usage.c.at < _start(days[0]) + DAY_S)
            .order_by(usage.c.at.desc(), usage.c.id.desc())
            .limit(limit)
        )
        return [UsageRow(*row) for row in connection.execute(query)]


def _last_days(connection: Connection, key_id: str, requests: int) -> list[str]:
    """The newest days on which a key was used, until they have so many requests."""
    day = usage_by_day.c.day
    query = (
        select(day, _sum("requests"))
        .where(usage_by_day.c.key_id == key_id)
        .group_by(day)
        .order_by(day.desc())
    )
    days: list[str] = []
    for name, number in connection.execute(query):
        days.append(name)
        requests -= number
        if requests <= 0:
            break
    return days


def _sum(name: str) -> Any:
    """Zero over nothing; as the column's type, for databases that sum into decimals."""
    column = usage_by_day.c[name]
    return cast(func.coalesce(func.sum(column), 0), column.type).label(name)


def _row(found: Row, by: Collection[str]) -> Row:
    row = {name: found[name] for name in columns(by)}
    return row | {"duration_s": round(row["duration_s"], 3)}


def _notes(connection: Connection) -> dict[Any, str]:
    return {key: note for key, note in connection.execute(select(keys.c.id, keys.c.note))}


def _start(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
