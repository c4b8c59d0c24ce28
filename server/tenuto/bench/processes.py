"""Processor time and memory of processes and everything below them, from Linux's /proc."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def cost_of(pids: Iterable[int]) -> tuple[float, int]:
    """Seconds, user and system, also of children that have ended; and bytes: the sum of each
    process's highest resident size since it began, in which shared pages count for each.

    Errors: ProcessLookupError if one of them is not there.
    """
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats[int(path.parent.name)] = _parent_and_ticks(path.read_text())
    family: set[int] = set()
    newest = set(pids)
    if gone := newest - stats.keys():
        raise ProcessLookupError(f"there is no process {min(gone)}")
    while newest:
        family |= newest
        newest = {pid for pid, (parent, _) in stats.items() if parent in newest} - family
    cpu_s = sum(stats[pid][1] for pid in family) / os.sysconf("SC_CLK_TCK")
    return cpu_s, sum(map(_peak_rss_bytes, family))


def _parent_and_ticks(stat: str) -> tuple[int, int]:
    """ppid, and utime + stime + cutime + cstime, as in proc_pid_stat(5)."""
    # The name, in brackets, may hold anything.
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), sum(map(int, fields[11:15]))


def _peak_rss_bytes(pid: int) -> int:
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1024
    return 0
