"""Whose process is whose, and who has which core."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.benchmarks.machine import apart, busy_s, family
from scripts.benchmarks.peers import started


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[int]:
    """A process that has started another."""
    log = tmp_path / "log"
    with started(["bash", "-c", "sleep 600 & echo started; wait"], log, {}) as process:
        began = time.monotonic()
        while not log.read_text():
            assert time.monotonic() < began + 10
        yield process.pid


def test_a_family_is_all_below_its_leaders(shell: int) -> None:
    assert [pid for pid in family([shell]) if pid != shell] == [
        int(line)
        for line in subprocess.check_output(["pgrep", "-P", str(shell)], text=True).split()
    ]
    assert shell in family([os.getpid()])


def test_apart(shell: int) -> None:
    cores, pids = os.sched_getaffinity(0), family([shell])
    with apart(pids):
        mine = os.sched_getaffinity(0)
        theirs = [os.sched_getaffinity(pid) for pid in pids]
    assert len(mine) == 1
    assert theirs == [cores - mine or cores] * 2
    assert [os.sched_getaffinity(pid) for pid in (0, *pids)] == [cores] * 3


def test_busy_seconds_hold_what_this_process_takes() -> None:
    all_s, own_s = busy_s(), time.process_time()
    while time.process_time() < own_s + 0.1:
        pass
    assert busy_s() - all_s > 0.05
