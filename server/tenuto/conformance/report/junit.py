"""The report as JUnit XML, which CI systems show."""

from collections.abc import Sequence
from datetime import UTC
from xml.etree import ElementTree as ET

from tenuto.conformance.report.curl import curl, failing, legible
from tenuto.conformance.report.json_report import elapsed_s, standing
from tenuto.conformance.run import Result
from tenuto.conformance.verdict import Report

NAME = "tenuto conform"


def to_junit(report: Report) -> str:
    root = ET.Element("testsuites", name=NAME)
    for group, results in report.groups().items():
        root.append(_suite(group, results, report))
    _count(root, report.results, report.elapsed_s)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _suite(group: str, results: Sequence[Result], report: Report) -> ET.Element:
    began = report.began_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    suite = ET.Element("testsuite", name=group, timestamp=began)
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report).items():
        ET.SubElement(properties, "property", name=name, value=_clean(value))
    suite.extend([_case(result, report) for result in results])
    _count(suite, results, sum(map(elapsed_s, results)))
    return suite


def _properties(report: Report) -> dict[str, str]:
    return {
        "target": report.target,
        "model": report.facts.model,
        "kit_version": report.kit_version,
    }


def _count(element: ET.Element, results: Sequence[Result], seconds: float) -> None:
    element.set("tests", str(len(results)))
    element.set("failures", str(len(element.findall(".//failure"))))
    element.set("errors", "0")
    element.set("skipped", str(len(element.findall(".//skipped"))))
    element.set("time", f"{seconds:.3f}")


def _case(result: Result, report: Report) -> ET.Element:
    case = result.case
    element = ET.Element(
        "testcase",
        classname=f"conformance.{case.group}",
        name=case.id,
        time=f"{elapsed_s(result):.3f}",
    )
    expected = report.expected.get(case.id)
    match standing(result, report):
        case "passed" if expected is not None:
            # The verdict is no on such an entry, and the file must not say otherwise.
            message = f"passed, though the baseline expects a failure: {expected}"
            _fail(element, message, "stale", "Remove it from the baseline.")
        case "failed":
            _fail(element, result.message, case.level, _story(result, report))
        case "expected":
            _skip(element, f"expected to fail: {expected}")
        case "differs":
            _skip(element, f"observed, does not count: {result.message}")
            ET.SubElement(element, "system-out").text = _clean(_story(result, report))
        case "not judged" | "not applicable" | "not run" as outcome:
            _skip(element, f"{outcome}: {result.message}")
    return element


def _fail(element: ET.Element, message: str, kind: str, text: str) -> None:
    failure = ET.SubElement(element, "failure", message=_clean(message), type=kind)
    failure.text = _clean(text)


def _skip(element: ET.Element, message: str) -> None:
    ET.SubElement(element, "skipped", message=_clean(message))


def _story(result: Result, report: Report) -> str:
    case = result.case
    lines = [
        f"requires: {case.requires}",
        f"level:    {case.level}",
        f'source:   "{case.quote}" ({case.source})',
        f"found:    {result.message}",
    ]
    if found := failing(result):
        lines.append(f"repeat:   {curl(found[1].request, report.target)}")
    return "\n".join(lines)


def _clean(text: str) -> str:
    return legible(text, instead="")
