"""Databases with usage, as the tests of it look at them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from tenuto.access.database import open_database
from tenuto.access.schema import usage, usage_by_day
from tenuto.access.usage import SUMMED, Recorder, UsageRow, day_of

JANUARY_31 = 1769817600.0
Sums = dict[tuple[str, str, str], tuple[float, ...]]


@contextmanager
def opened(directory: Path, url: str | None = None) -> Iterator[Engine]:
    engine = open_database(directory, url)
    yield engine
    engine.dispose()


def a_row(**fields: Any) -> UsageRow:
    known = {"at": JANUARY_31, "key_id": "k1", "model": "m1", "endpoint": "/v1/completions"}
    return UsageRow(**{**known, "status": 200, **fields})


def record(engine: Engine, rows: Iterable[UsageRow]) -> None:
    recorder = Recorder(engine)
    for row in rows:
        recorder.add(row)
    recorder.flush()


def stored(engine: Engine) -> list[UsageRow]:
    """In the order in which they were written."""
    columns = [usage.c[name] for name in UsageRow.__struct_fields__]
    with engine.connect() as connection:
        return [UsageRow(*row) for row in connection.execute(select(*columns).order_by(usage.c.id))]


def sums_of(rows: Iterable[UsageRow]) -> Sums:
    """What `usage_by_day` has to hold for these rows; seconds to a millionth."""
    sums: Sums = {}
    for row in rows:
        group = (day_of(row.at), row.key_id, row.model)
        failed = row.status >= 400 and row.status != 499
        tokens = (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.generated_tokens)
        before = sums.get(group, (0,) * len(SUMMED))
        added = (1, failed, *tokens, row.duration_s)
        sums[group] = tuple(a + b for a, b in zip(before, added, strict=True))
    return {group: _rounded(values) for group, values in sums.items()}


def stored_sums(engine: Engine) -> Sums:
    with engine.connect() as connection:
        found = connection.execute(select(usage_by_day)).all()
    return {(row[0], row[1], row[2]): _rounded(row[3:]) for row in found}


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)
