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
    always, sometimes = KNOWN[fault.id]
    assert sorted(always - red) == []
    # Where every answer is random, any case may be red.
    assert fault.id in CERTAIN or sorted(red - always - sometimes) == []


def test_every_fault_is_noticed() -> None:
    assert KNOWN.keys() == set(IDS)
    assert [fault for fault, (always, _) in KNOWN.items() if not always] == []


def test_every_case_has_its_fault() -> None:
    covered = {case for always, _ in KNOWN.values() for case in always}
    assert [case.id for case in all_cases() if case.id not in covered] == []


def test_without_a_fault_every_case_passes() -> None:
    with faulty_server() as url:
        report = report_of(url)
    assert [
        (r.case.id, r.outcome, r.message) for r in report.results if r.outcome != "passed"
    ] == []
    assert report.conforms
