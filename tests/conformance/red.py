"""Which cases each fault turns red, as recorded in red.yaml. As a command it records anew:
`.venv/bin/python -m tests.conformance.red [FAULT...]`, some 12 minutes for all."""

import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tenuto.access.keys import Key, Keys, Limits, digest_of
from tenuto.conformance.session import Target, Wishes, check
from tenuto.conformance.verdict import Report
from tests.conformance.faults import Fault, Faulty
from tests.conformance.toy import ToyBackend
from tests.conformance.variants_answered import ANSWERED
from tests.conformance.variants_asked import ASKED, HONEST_KEY, LIMITED_KEY
from tests.conformance.variants_limits import LIMITS
from tests.conformance.variants_streamed import STREAMED
from tests.conftest import MODEL, Setup, served

FAULTS: list[Fault] = [*ASKED, *ANSWERED, *LIMITS, *STREAMED]
IDS = [fault.id for fault in FAULTS]
RECORDED = Path(__file__).with_name("red.yaml")
REJECTING = "Midnight-Miqu-70B-v1.5"
LIMIT = 5
# Random answers make some cases red now and then; they are marked with this in the recording.
SOMETIMES = "~"
NUM_RECORDED_RUNS = 2
# With these nearly every answer is random; what is red by design is so always.
CERTAIN = {"ignores-temperature": ("temperature-", "names-temperature", "greedy-n")}


def _keys() -> Keys:
    limited = Key("limited", digest_of(LIMITED_KEY), limits=Limits(requests_per_minute=LIMIT))
    keys = Keys(user=[HONEST_KEY])
    keys.adopt([limited], has_stored=True)
    return keys


@contextmanager
def faulty_server() -> Iterator[str]:
    """The toy server's address; each of its faults lies below `/faults/<id>`. Only the first run
    of a minute sees its limited key let in."""
    setup = Setup(
        models=[{"id": MODEL}, {"id": REJECTING, "system_prompt": "reject"}],
        eager=(MODEL, REJECTING),
        backend=ToyBackend(max_model_len=8192),
        keys=_keys(),
        cors_origins=["https://example.org"],
        wrap=lambda app: Faulty(app, FAULTS),
    )
    with TemporaryDirectory() as directory, served(Path(directory), setup) as running:
        running.engine(MODEL)
        running.engine(REJECTING)
        yield running.url


def report_of(base_url: str) -> Report:
    target = Target(base_url, HONEST_KEY, MODEL, REJECTING, timeout_s=10, limited_key=LIMITED_KEY)
    return asyncio.run(check(target, Wishes(parallel=8)))


def red_cases(fault: str) -> set[str]:
    """The ids of the cases that do not pass with the fault, on a server of its own."""
    with faulty_server() as url:
        results = report_of(f"{url}/faults/{fault}").results
    return {result.case.id for result in results if result.outcome != "passed"}


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """Two processes: the server and the kit are Python, and share one interpreter in each."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def recorded() -> dict[str, tuple[set[str], set[str]]]:
    """By fault the cases that are always red, and those that are sometimes."""
    by_fault = {}
    for fault, groups in yaml.safe_load(RECORDED.read_text(encoding="utf-8")).items():
        ids = [f"{group}/{name}" for group, names in groups.items() for name in names.split()]
        always = {id for id in ids if not id.endswith(SOMETIMES)}
        by_fault[fault] = (always, {id.removesuffix(SOMETIMES) for id in ids} - always)
    return by_fault


def grouped(always: Iterable[str], sometimes: Iterable[str]) -> dict[str, str]:
    groups: dict[str, list[str]] = {}
    for id in sorted([*always, *(f"{id}{SOMETIMES}" for id in sometimes)]):
        group, _, name = id.partition("/")
        groups.setdefault(group, []).append(name)
    return {group: " ".join(names) for group, names in groups.items()}


def record(faults: Sequence[str]) -> None:
    found = {} if faults == IDS else yaml.safe_load(RECORDED.read_text(encoding="utf-8"))
    with workers() as pool:
        for fault, runs in zip(
            faults, pool.map(partial(_runs, NUM_RECORDED_RUNS), faults), strict=True
        ):
            always = {id for id in set.intersection(*runs) if _is_certain(fault, id)}
            found[fault] = grouped(always, set.union(*runs) - always)
            print(f"{fault}: {len(always)} red", file=sys.stderr)
    text = yaml.safe_dump(found, sort_keys=True, width=110, default_flow_style=False)
    RECORDED.write_text(f"# Recorded by tests/conformance/red.py, not by hand.\n{text}")


def _is_certain(fault: str, id: str) -> bool:
    return id.partition("/")[2].startswith(CERTAIN.get(fault, ""))


def _runs(count: int, fault: str) -> list[set[str]]:
    return [red_cases(fault) for _ in range(count)]


if __name__ == "__main__":
    record(sys.argv[1:] or IDS)
