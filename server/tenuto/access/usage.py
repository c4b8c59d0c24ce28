"""Usage: one row for each request, written in batches beside the requests, and its sums by day."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any, cast

import msgspec
from sqlalchemy import Connection, CursorResult, Engine, delete, insert, select

from tenuto.access.database import cause_of
from tenuto.access.schema import usage, usage_by_day

logger = logging.getLogger(__name__)
DAY_S = 86_400
EXPIRY_EVERY_S = 3_600
# Rows of one transaction: nobody waits longer for the database than these take, some 50 ms.
BATCH = 5_000
# What a database that cannot be written may cost in memory: some 300 MB.
MAX_KEPT = 1_000_000
# The client left before its answer had ended: not the server's error.
CLIENT_LEFT = 499


class UsageRow(msgspec.Struct, frozen=True, gc=False):
    """One request. `at` is its end, in seconds since 1970; `key_id` is empty on an open server.

    `completion_tokens` were returned, `generated_tokens` are those of all candidates;
    `cached_tokens` are part of the prompt's. `first_token_s` is None without an answer's token.
    """

    at: float
    key_id: str
    model: str
    endpoint: str
    status: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: float | None = None
    duration_s: float = 0
    finish: str | None = None


class Recorder:
    """`add` costs a request nothing; a thread of its own writes every `flush_s` seconds.

    To be ended by `close`. Rows older than `retention_days` are deleted, their sums stay.
    """

    def __init__(
        self, engine: Engine, flush_s: float = 0.5, retention_days: int | None = None
    ) -> None:
        self._engine = engine
        self._flush_s = flush_s
        self._retention_days = retention_days
        self._expiry_due_at = time.monotonic()
        self._added: deque[UsageRow] = deque()
        self._kept: list[UsageRow] = []
        self._dropped = 0
        self._failing = False
        self._writing = threading.Lock()
        self._closing = asyncio.Event()
        # Not the event loop's threads: a row would wait there behind other work.
        self._thread = ThreadPoolExecutor(1, "usage")

    def add(self, row: UsageRow) -> None:
        self._added.append(row)

    async def run(self) -> None:
        """Writes until `close`."""
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(self._flush_s):
                    await self._closing.wait()
            except TimeoutError:
                await self._flushed()

    async def close(self) -> None:
        """Writes what is left; returns once it is written, or is known to be lost."""
        self._closing.set()
        await self._flushed()
        self._thread.shutdown(wait=False)
        if self._kept:
            logger.error("usage: %d requests were never written", len(self._kept))

    async def _flushed(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self.flush)

    def flush(self) -> None:
        """Writes all that was added, in the caller's thread. What a database that is locked or full
        does not take is kept for the next time."""
        with self._writing:
            self._kept += [self._added.popleft() for _ in range(len(self._added))]
            try:
                self._write()
                self._expire()
            # Whatever it is: without the recorder the rows would gather without bound.
            except Exception as error:
                self._keep(error)
            else:
                self._recovered()

    def _write(self) -> None:
        while batch := self._kept[:BATCH]:
            with self._engine.begin() as connection:
                write(connection, batch)
            del self._kept[:BATCH]

    def _expire(self) -> None:
        """A part of the old rows: the next flush deletes more, so that none of them waits long."""
        if self._retention_days is None or time.monotonic() < self._expiry_due_at:
            return
        with self._engine.begin() as connection:
            deleted = expire(connection, time.time() - self._retention_days * DAY_S)
        if deleted < BATCH:
            self._expiry_due_at = time.monotonic() + EXPIRY_EVERY_S

    def _keep(self, error: Exception) -> None:
        excess = max(0, len(self._kept) - MAX_KEPT)
        del self._kept[:excess]
        self._dropped += excess
        if not self._failing:
            logger.error("usage: cannot be written, and is kept in memory: %s", cause_of(error))
        self._failing = True

    def _recovered(self) -> None:
        if self._failing:
            logger.warning("usage: is written again; %d requests were dropped", self._dropped)
        self._failing = False
        self._dropped = 0


def write(connection: Connection, rows: Sequence[UsageRow]) -> None:
    """Rows and sums together: whoever reads one sees the other."""
    connection.execute(insert(usage), [msgspec.structs.asdict(row) for row in rows])
    # In one order everywhere, so that two writers never wait for each other.
    sums = sorted(_summed(rows), key=lambda sums: [sums[name] for name in GROUP])
    connection.execute(_addition(connection.dialect.name), sums)


def expire(connection: Connection, before: float) -> int:
    """Deletes some of the rows that ended before a time, in seconds since 1970; their number."""
    old = select(usage.c.id).where(usage.c.at < before).order_by(usage.c.at).limit(BATCH)
    deleted = connection.execute(delete(usage).where(usage.c.id.in_(old)))
    return cast(CursorResult[Any], deleted).rowcount


def day_of(at: float) -> str:
    """The day in UTC, as 2026-01-31."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()


GROUP = ("day", "key_id", "model")
SUMMED = tuple(column.name for column in usage_by_day.columns if not column.primary_key)


@cache
def _addition(dialect: str) -> Any:
    """Adds to the sums, and makes those that are not there, whatever other writers do meanwhile."""
    statement = import_module(f"sqlalchemy.dialects.{dialect}").insert(usage_by_day)
    sums = {name: usage_by_day.c[name] + statement.excluded[name] for name in SUMMED}
    return statement.on_conflict_do_update(index_elements=GROUP, set_=sums)


def _summed(rows: Iterable[UsageRow]) -> Iterable[dict[str, Any]]:
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        group = (day_of(row.at), row.key_id, row.model)
        sums = found.get(group)
        if sums is None:
            sums = found[group] = dict(zip(GROUP, group, strict=True)) | dict.fromkeys(SUMMED, 0)
        sums["requests"] += 1
        sums["errors"] += row.status >= 400 and row.status != CLIENT_LEFT
        sums["prompt_tokens"] += row.prompt_tokens
        sums["cached_tokens"] += row.cached_tokens
        sums["completion_tokens"] += row.completion_tokens
        sums["generated_tokens"] += row.generated_tokens
        sums["duration_s"] += row.duration_s
    return found.values()
