"""What the reference stack passes and fails of the kit: the table of docs/conformance.md."""

import asyncio
import re
from pathlib import Path

import pytest

from tenuto.conformance.session import Target, Wishes, check
from tenuto.conformance.verdict import Report
from tests.live.conftest import MODEL, ROOT
from tests.peers.conftest import INSTALL_AND_START_S, Stack, Stacks

pytestmark = [pytest.mark.peers, pytest.mark.timeout(INSTALL_AND_START_S)]
# What each failure comes from, by the kit's own means: a baseline.
KNOWN = Path(__file__).with_name("reference_stack.yaml")
DOCS = ROOT / "docs" / "conformance.md"


def checked(stack: Stack) -> Report:
    return asyncio.run(check(Target(stack.url, stack.key, MODEL), Wishes(baseline=KNOWN)))


@pytest.mark.filterwarnings("default:the stack ended by itself")
def test_it_fails_what_is_known_and_nothing_else(stacks: Stacks) -> None:
    report = stacks.through(checked)
    failed = {r.case.id: r.message for r in report.results if r.outcome == "failed"}
    assert {id: why for id, why in failed.items() if id not in report.expected} == {}
    assert report.stale == []
    docs = DOCS.read_text()
    told = re.search(r"passes (\d+) of the (\d+) cases", docs)
    assert told is not None
    assert (int(told[1]), int(told[2])) == (report.counts()["passed"], len(report.results))
    unjudged = re.findall(r"1 is not judged,\n`(.+?)`", docs)
    assert unjudged == [r.case.id for r in report.unjudged]
