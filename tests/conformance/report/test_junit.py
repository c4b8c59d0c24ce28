from xml.etree import ElementTree as ET

import pytest

from tenuto.conformance.report.junit import to_junit
from tenuto.conformance.verdict import Report
from tests.conformance.report.made import exchange, fine, mixed, report, result, unclear


def parsed(made: Report) -> ET.Element:
    return ET.fromstring(to_junit(made).encode())


def case(root: ET.Element, id: str) -> ET.Element:
    found = root.find(f".//testcase[@name='{id}']")
    assert found is not None
    return found


def child(element: ET.Element, tag: str) -> ET.Element:
    found = element.find(tag)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "made", [mixed(), fine(), unclear(), report()], ids=["mixed", "fine", "unclear", "empty"]
)
def test_the_counts_agree_with_the_elements(made: Report) -> None:
    root = parsed(made)
    for element in (root, *root.iter("testsuite")):
        assert int(element.attrib["tests"]) == len(element.findall(".//testcase"))
        assert int(element.attrib["failures"]) == len(element.findall(".//failure"))
        assert int(element.attrib["skipped"]) == len(element.findall(".//skipped"))
    assert int(root.attrib["tests"]) == len(made.results)
    assert (root.attrib["failures"] == "0") == (not made.breaks)


def test_suites_are_the_groups() -> None:
    root = parsed(mixed())
    assert [suite.attrib["name"] for suite in root] == ["chat", "completions", "models"]
    assert root[0].attrib["timestamp"] == "2026-11-22T13:05:00"
    properties = {p.attrib["name"]: p.attrib["value"] for p in root[0].iter("property")}
    assert properties["model"] == "demo"


def test_a_failure_says_what_is_required_and_how_to_repeat_it() -> None:
    failure = child(case(parsed(mixed()), "chat/broken"), "failure")
    assert failure.attrib["message"] == "status 500 instead of 200: oh no"
    assert failure.attrib["type"] == "documented"
    assert failure.text is not None
    assert "what broken requires" in failure.text
    assert "top_k: Number of top tokens" in failure.text
    assert "curl -sN -X POST" in failure.text


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("models/known", "expected to fail: vLLM cannot"),
        ("models/seen", "observed, does not count: another name"),
        ("models/rejecting", "not applicable: the server has no rejecting model"),
        ("models/unrecorded", "not run: the recording does not hold it"),
        ("models/unclear", "not judged: no prompt was found that is open"),
    ],
)
def test_what_does_not_count_is_skipped(id: str, reason: str) -> None:
    element = case(parsed(mixed()), id)
    assert child(element, "skipped").attrib["message"] == reason
    assert element.find("failure") is None


def test_an_observed_failure_says_more_in_its_output() -> None:
    root = parsed(mixed())
    assert "another name" in (child(case(root, "models/seen"), "system-out").text or "")
    assert len(root.findall(".//system-out")) == 1


def test_a_stale_entry_fails_as_the_verdict_does() -> None:
    failure = child(case(parsed(mixed()), "models/mended"), "failure")
    assert failure.attrib["type"] == "stale"
    assert "once was wrong" in failure.attrib["message"]


def test_characters_that_xml_forbids_are_left_out() -> None:
    message = "a\x00b\x0bc\x1bd\ufffee\ud800f <&> \"'"
    broken = result("chat/x", "failed", message, exchanges={"answer": exchange(message)})
    failure = child(case(parsed(report(broken)), "chat/x"), "failure")
    assert failure.attrib["message"] == "abcdef <&> \"'"
    assert failure.text is not None
    assert "abcdef <&> \"'" in failure.text


def test_a_failure_without_any_request() -> None:
    root = parsed(report(result("chat/x", "failed", "oh no", exchanges={})))
    assert (child(case(root, "chat/x"), "failure").text or "").endswith("oh no")
