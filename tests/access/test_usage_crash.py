"""What SIGKILL costs: at most the last second, and never the database."""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.access import crashing
from tests.access.usages import opened, stored, stored_sums, sums_of

KILLS = 5
PROMISED_S = 1
# The server's own, and one that is nearly always writing, so that many kills meet a transaction.
WRITERS = [(1, 0.5), (2, 0.5), (3, 0.001), (4, 0.001)]


@pytest.mark.live
def test_twenty_kills_under_load(tmp_path: Path) -> None:
    """All at once: they mostly wait."""
    with ThreadPoolExecutor(len(WRITERS)) as threads:
        lanes = [threads.submit(lane, tmp_path / str(seed), seed, s) for seed, s in WRITERS]
        recorded = [future.result() for future in lanes]
    assert min(recorded) > 0


def lane(directory: Path, seed: int, flush_s: float) -> int:
    """The number of rows that survived several kills in one database."""
    moments = random.Random(seed)
    before: set[int] = set()
    first = 0
    for _ in range(KILLS):
        added, killed_at = killed(directory, first, flush_s, moments.randrange(1, 1800))
        after = survivors(directory)
        promised = {number for number, at in added.items() if at < killed_at - PROMISED_S}
        assert before | promised <= after <= before | added.keys()
        before, first = after, max(added) + 1
    return len(before)


def killed(
    directory: Path, first: int, flush_s: float, lines: int
) -> tuple[dict[int, float], float]:
    """Kills a recording process once it has told so many rows: all that it told, and when."""
    command = [sys.executable, crashing.__file__, str(directory), str(first), str(flush_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        killed_at = time.time()
        process.kill()
        told += process.stdout.readlines()
    assert all(line.endswith("\n") for line in told[:lines])
    pairs = [line.split() for line in told if line.endswith("\n")]
    return {int(number): float(at) for number, at in pairs}, killed_at


def survivors(directory: Path) -> set[int]:
    """The rows' numbers, when the database is whole: every row once, and the sums are theirs."""
    with opened(directory) as engine:
        rows, sums = stored(engine), stored_sums(engine)
    numbers = {row.prompt_tokens for row in rows}
    assert len(numbers) == len(rows)
    assert sums == sums_of(rows)
    return numbers
