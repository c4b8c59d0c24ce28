"""The machine that all share: which processes a server is, which cores it has, how busy all are."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def family(leaders: Iterable[int]) -> list[int]:
    """Processes with all below them."""
    return [pid for leader in leaders for pid in (leader, *family(_children(leader)))]


def _children(pid: int) -> list[int]:
    found = (task / "children" for task in Path(f"/proc/{pid}/task").iterdir())
    return [int(child) for path in found for child in path.read_text().split()]


@contextmanager
def apart(pids: Sequence[int]) -> Iterator[None]:
    """This process has a core for itself, and these the others: it takes nothing from them."""
    cores = os.sched_getaffinity(0)
    mine = {max(cores)}
    try:
        _pin([os.getpid()], mine)
        _pin(pids, cores - mine or cores)
        yield
    finally:
        _pin([os.getpid(), *pids], cores)


def _pin(pids: Iterable[int], cores: set[int]) -> None:
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)


def busy_s() -> float:
    """Processor time that everything here has taken, and what the host kept for others."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
