"""Fills a state database with requests of a year, and measures the questions about them.

Run it through scripts/bench_usage. Exit code 1: a question took a second or longer.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import Engine, func, select

from tenuto.access.database import open_database
from tenuto.access.schema import usage_by_day
from tenuto.access.usage import UsageRow, write
from tenuto.access.usage_queries import recent, tokens_this_month, totals

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 365
LAST = FIRST + timedelta(days=DAYS - 1)
KEYS = [f"key-{number:02}" for number in range(50)]
MODELS = [f"owner/model-{number:02}-FP8-Dynamic" for number in range(20)]
BATCH = 50_000
REPEATS = 5
ALLOWED_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    number: int = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(Path(folder))
        began = time.perf_counter()
        fill(engine, number)
        filled_s = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        took = {name: measured(question) for name, question in questions(engine).items()}
        with engine.connect() as connection:
            sums = connection.execute(select(func.count()).select_from(usage_by_day)).scalar_one()
        engine.dispose()
    print(f"{number:,} rows, {sums:,} sums, {size / 1e9:.2f} GB, written in {filled_s:.0f} s")
    show(took)
    return int(max(map(max, took.values())) >= ALLOWED_S)


def fill(engine: Engine, number: int) -> None:
    rows = made(number)
    for first in track(range(0, number, BATCH), "Writing"):
        batch = [next(rows) for _ in range(min(BATCH, number - first))]
        with engine.begin() as connection:
            write(connection, batch)


def made(number: int) -> Iterator[UsageRow]:
    """In the order of time; every key uses every model on every day."""
    chance = random.Random(1)
    for count in range(number):
        tokens = chance.randrange(1, 2000)
        yield UsageRow(
            at=FIRST.timestamp() + DAYS * 86_400 * count / number,
            key_id=chance.choice(KEYS),
            model=chance.choice(MODELS),
            endpoint="/v1/chat/completions",
            status=200,
            prompt_tokens=4 * tokens,
            cached_tokens=tokens,
            completion_tokens=tokens,
            generated_tokens=tokens,
            first_token_s=0.2,
            duration_s=tokens / 50,
            finish="stop",
        )


def questions(engine: Engine) -> dict[str, Callable[[], Any]]:
    month = LAST.date().replace(day=1)
    return {
        "by day": lambda: totals(engine, ["day"]),
        "by key": lambda: totals(engine, ["key"]),
        "by model": lambda: totals(engine, ["model"]),
        "by key and model": lambda: totals(engine, ["key", "model"]),
        "by day, key and model, last month": lambda: totals(engine, ["day", "key", "model"], month),
        "tokens of each key in the last month": lambda: tokens_this_month(engine, LAST.timestamp()),
        "the last 20 requests of a key": lambda: recent(engine, KEYS[0]),
        "writing 500 requests of the whole year": lambda: add(engine, 500),
    }


def add(engine: Engine, number: int) -> None:
    with engine.begin() as connection:
        write(connection, list(made(number)))


def measured(question: Callable[[], Any]) -> list[float]:
    """Seconds."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        question()
        seconds.append(time.perf_counter() - began)
    return seconds


def show(took: dict[str, list[float]]) -> None:
    table = Table("question", "median, ms", "slowest, ms", box=None)
    for name, seconds in took.items():
        table.add_row(name, f"{statistics.median(seconds) * 1e3:.1f}", f"{max(seconds) * 1e3:.1f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
