"""Every case of the kit can fail: for each there is a fault of the server that turns it red."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tenuto.conformance.cases import all_cases
from tests.conformance.faults import Fault
from tests.conformance.red import (
    CERTAIN,
    FAULTS,
    IDS,
    faulty_server,
    recorded,
    red_cases,
    report_of,
    workers,
)

KNOWN = recorded()
Reds = dict[str, "Future[set[str]]"]


@pytest.fixture(scope="module")
def reds() -> Iterator[Reds]:
    with workers() as pool:
        yield {fault: pool.submit(red_cases, fault) for fault in IDS}


@pytest.mark.conformance
@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_turns_its_cases_red_and_no_other(reds: Reds, fault: Fault) -> None:
    red = reds[fault.id].result(timeout=110)
    missing, surplus = _unlike_the_recording(fault.id, red, red)
    if missing or surplus:
        # A server at fault answers less than a random case reckons with: chance shows, but once.
        again = red_cases(fault.id)
        missing, surplus = _unlike_the_recording(fault.id, red | again, red & again)
    assert (missing, surplus) == ([], [])


def _unlike_the_recording(
    fault: str, ever: set[str], each_time: set[str]
) -> tuple[list[str], list[str]]:
    always, sometimes = KNOWN[fault]
    # Where every answer is random, any case may be red.
    surplus = set() if fault in CERTAIN else each_time - always - sometimes
    return sorted(always - ever), sorted(surplus)


def test_every_fault_is_noticed() -> None:
    assert KNOWN.keys() == set(IDS)
    assert [fault for fault, (always, _) in KNOWN.items() if not always] == []


def test_every_case_has_its_fault() -> None:
    covered = {case for always, _ in KNOWN.values() for case in always}
    assert [case.id for case in all_cases() if case.id not in covered] == []


@pytest.mark.conformance
def test_without_a_fault_every_case_passes() -> None:
    with faulty_server() as url:
        report = report_of(url)
    assert [
        (r.case.id, r.outcome, r.message) for r in report.results if r.outcome != "passed"
    ] == []
    assert report.conforms
