"""The recorder: batches, what happens when the database does not take them, and retention."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from tenuto.access.schema import metadata
from tenuto.access.usage import DAY_S, Recorder, UsageRow, day_of, write
from tests.access.conftest import NewUrl
from tests.access.usages import JANUARY_31, a_row, opened, record, stored, stored_sums, sums_of

MANY = st.builds(
    a_row,
    at=st.sampled_from([JANUARY_31, JANUARY_31 + DAY_S - 0.001, JANUARY_31 + DAY_S]),
    key_id=st.sampled_from(["", "k1", "k2"]),
    model=st.sampled_from(["m1", "owner/m2"]),
    status=st.sampled_from([200, 400, 499, 503]),
    prompt_tokens=st.integers(0, 2**31 - 1),
    cached_tokens=st.integers(0, 9),
    completion_tokens=st.integers(0, 9),
    generated_tokens=st.integers(0, 9),
    first_token_s=st.none() | st.sampled_from([0.25]),
    duration_s=st.sampled_from([0, 0.5, 1.25]),
    finish=st.none() | st.sampled_from(["stop", "length"]),
)
BATCHES = st.lists(st.lists(MANY, max_size=8), max_size=6)


@pytest.fixture
def engine(tmp_path: Path, new_url: NewUrl) -> Iterator[Engine]:
    with opened(tmp_path, new_url()) as engine:
        yield engine


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    with opened(tmp_path) as engine:
        yield engine


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, new_url: NewUrl) -> Iterator[list[Engine]]:
    """Two, of one database, as two processes have them."""
    directory, url = tmp_path_factory.mktemp("state"), new_url()
    with opened(directory, url) as first, opened(directory, url) as second:
        yield [first, second]


def emptied(engine: Engine) -> Engine:
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
    return engine


def written(engine: Engine, batches: list[list[UsageRow]]) -> None:
    recorder = Recorder(engine)
    for batch in batches:
        for row in batch:
            recorder.add(row)
        recorder.flush()


async def until(count: int, engine: Engine) -> None:
    async with asyncio.timeout(10):
        while len(await asyncio.to_thread(stored, engine)) != count:
            pass


@settings(max_examples=60, deadline=None)
@given(batches=BATCHES)
def test_rows_and_sums_whatever_the_batches(
    engines: list[Engine], batches: list[list[UsageRow]]
) -> None:
    engine = emptied(engines[0])
    written(engine, batches)
    rows = [row for batch in batches for row in batch]
    assert stored(engine) == rows
    assert stored_sums(engine) == sums_of(rows)


@settings(max_examples=10, deadline=None)
@given(first=BATCHES, second=BATCHES)
def test_two_recorders_at_once(
    engines: list[Engine], first: list[list[UsageRow]], second: list[list[UsageRow]]
) -> None:
    engine = emptied(engines[0])
    threads = [
        threading.Thread(target=written, args=args)
        for args in zip(engines, (first, second), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [row for batch in (*first, *second) for row in batch]
    assert Counter(stored(engine)) == Counter(rows)
    assert stored_sums(engine) == sums_of(rows)


async def test_written_while_it_runs(engine: Engine) -> None:
    recorder = Recorder(engine, flush_s=0.001)
    running = asyncio.create_task(recorder.run())
    for number in range(3):
        recorder.add(a_row(prompt_tokens=number))
        await until(number + 1, engine)
    await recorder.close()
    await running


async def test_closing_writes_what_is_left(engine: Engine) -> None:
    recorder = Recorder(engine, flush_s=600)
    running = asyncio.create_task(recorder.run())
    rows = [a_row(prompt_tokens=number) for number in range(12_000)]
    for row in rows:
        recorder.add(row)
    await recorder.close()
    await running
    assert stored(engine) == rows
    assert stored_sums(engine) == sums_of(rows)


def test_adding_is_quick(engine: Engine) -> None:
    """Some 0.3 µs with the row's own making; the bound is for machines that do other things."""
    recorder = Recorder(engine)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10_000):
            recorder.add(a_row_quickly())
        seconds.append(time.perf_counter() - began)
    assert min(seconds) / 10_000 < 2e-6


def a_row_quickly() -> UsageRow:
    return UsageRow(JANUARY_31, "k1", "m1", "/v1/completions", 200, 10, 0, 5, 5, 0.1, 1.0, "stop")


def test_a_locked_database(
    sqlite: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("tenuto.access.database.BUSY_TIMEOUT_S", 0)
    with opened(tmp_path) as impatient:
        recorder = Recorder(impatient)
        with sqlite.begin() as connection:
            write(connection, [a_row(prompt_tokens=9)])
            for number in range(3):
                recorder.add(a_row(prompt_tokens=number))
                recorder.flush()
        recorder.flush()
    assert caplog.messages == [
        "usage: cannot be written, and is kept in memory: database is locked",
        "usage: is written again; 0 requests were dropped",
    ]
    assert [row.prompt_tokens for row in stored(sqlite)] == [9, 0, 1, 2]


async def test_a_full_database(
    sqlite: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The oldest are dropped once there are too many, and the log says how many."""
    monkeypatch.setattr("tenuto.access.usage.MAX_KEPT", 1000)
    pages: list[str] = []

    @event.listens_for(sqlite, "begin")
    def limit(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages[-1]}")

    pages.append("1")
    recorder = Recorder(sqlite)
    for number in range(2500):
        recorder.add(a_row(prompt_tokens=number))
    recorder.flush()
    assert "database or disk is full" in caplog.text
    pages.append("100000")
    recorder.flush()
    assert "1500 requests were dropped" in caplog.text
    assert [row.prompt_tokens for row in stored(sqlite)] == list(range(1500, 2500))
    pages.append("1")
    for number in range(900):
        recorder.add(a_row(prompt_tokens=number))
    await recorder.close()
    assert "900 requests were never written" in caplog.text


async def test_whatever_goes_wrong_the_recorder_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only errors of SQLAlchemy."""
    monkeypatch.setattr("tenuto.access.usage.MAX_KEPT", 2)
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def refuse(*_: Any) -> None:
        loop.call_soon_threadsafe(refused.set)
        raise OSError("a-model")

    engine.dispose()
    event.listen(engine, "connect", refuse)
    recorder = Recorder(engine, flush_s=0.001)
    for number in range(5):
        recorder.add(a_row(prompt_tokens=number))
    running = asyncio.create_task(recorder.run())
    async with asyncio.timeout(10):
        await refused.wait()
    await asyncio.to_thread(recorder.flush)
    event.remove(engine, "connect", refuse)
    await until(2, engine)
    assert not running.done()
    await recorder.close()
    await running
    assert [row.prompt_tokens for row in stored(engine)] == [3, 4]
    assert "kept in memory: OSError" in caplog.text
    assert "a-model" not in caplog.text


def test_nothing_of_a_row_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(engine)
    recorder.add(a_row(key_id=None, model="a-model"))
    recorder.flush()
    assert "null value" in caplog.text.lower() or "NOT NULL constraint" in caplog.text
    assert "a-model" not in caplog.text


def test_retention(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small parts, with every flush one, and again an hour later; sums stay."""
    monkeypatch.setattr("tenuto.access.usage.BATCH", 10)
    now = time.time()
    old = [a_row(at=now - 31 * DAY_S) for _ in range(25)]
    new = [a_row(at=now - 29 * DAY_S)]
    record(engine, old + new)
    recorder = Recorder(engine, retention_days=30)
    left = []
    for _ in range(4):
        recorder.flush()
        left.append(len(stored(engine)))
    assert left == [16, 6, 1, 1]
    record(engine, old)
    recorder.flush()
    assert len(stored(engine)) == 26
    monkeypatch.setattr("tenuto.access.usage.EXPIRY_EVERY_S", 0)
    later = Recorder(engine, retention_days=30)
    for _ in range(4):
        later.flush()
    assert stored(engine) == new
    assert stored_sums(engine) == sums_of(old + new + old)


def test_without_retention_all_rows_stay(engine: Engine) -> None:
    record(engine, [a_row(at=0)])
    Recorder(engine).flush()
    assert len(stored(engine)) == 1


@pytest.mark.parametrize(
    ("at", "day"),
    [(0, "1970-01-01"), (JANUARY_31 - 0.001, "2026-01-30"), (JANUARY_31, "2026-01-31")],
)
def test_days_are_those_of_utc(at: float, day: str) -> None:
    assert day_of(at) == day
