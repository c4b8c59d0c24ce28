import json
from typing import Any

import pytest

from tenuto.conformance.report.json_report import MAX_TEXT, to_json
from tenuto.conformance.verdict import Report
from tests.conformance.report.made import exchange, fine, mixed, report, result, unclear


def parsed(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


def test_the_counts_are_those_of_the_cases() -> None:
    data = parsed(to_json(mixed()))
    assert data["conforms"] is False
    assert data["counts"] == {
        "cases": 9,
        "passed": 2,
        "failed": 2,
        "differs": 1,
        "expected": 1,
        "not_applicable": 1,
        "not_judged": 1,
        "not_run": 1,
    }
    assert data["levels"]["contract"]["failed"] == 1
    assert data["stale"] == ["models/mended"]
    assert len(data["cases"]) == 9


@pytest.mark.parametrize(
    ("made", "conforms", "verdict"),
    [
        (fine(), True, "conforms"),
        (mixed(), False, "does not conform"),
        (unclear(), False, "no verdict"),
    ],
    ids=["fine", "mixed", "unclear"],
)
def test_the_verdict(made: Report, conforms: bool, verdict: str) -> None:
    data = parsed(to_json(made))
    assert (data["conforms"], data["verdict"]) == (conforms, verdict)


def test_what_was_run() -> None:
    data = parsed(to_json(fine()))
    assert data["conforms"] is True
    assert data["kit_version"] == "0.1.0"
    assert data["began_at"] == "2026-11-22T13:05:00+00:00"
    assert data["facts"]["model"] == "demo"
    assert list(data["facts"]["prompts"]) == ["open/chat", "short/chat"]
    assert data["cost"] == {"max_requests": 12, "max_tokens": 3456}


def test_a_case() -> None:
    case = parsed(to_json(mixed()))["cases"][4]
    assert case["id"] == "models/known"
    assert (case["group"], case["way"], case["level"]) == ("models", None, "documented")
    assert (case["outcome"], case["message"]) == ("failed", "still wrong")
    assert case["expected"] == "vLLM cannot"
    assert case["elapsed_s"] == 0.25


def test_failures_have_their_exchanges_and_no_others_do() -> None:
    cases = parsed(to_json(mixed()))["cases"]
    assert [case["id"] for case in cases if "exchanges" in case] == [
        "chat/broken",
        "completions/broken",
        "models/seen",
        "models/known",
    ]
    [found] = cases[1]["exchanges"]
    assert found["request"]["body"] == '{"prompt": "Hi"}'
    assert found["answer"]["status"] == 200
    # Whatever else a server says of itself and of whoever asked stays where it was.
    assert found["answer"]["headers"] == {"content-type": "application/json"}


def test_long_answers_are_cut() -> None:
    long = result("chat/x", "failed", "oh", exchanges={"answer": exchange("a" * 10_000)})
    text = parsed(to_json(report(long)))["cases"][0]["exchanges"][0]["answer"]["text"]
    assert text == "a" * MAX_TEXT + " [... cut: 6,000 more characters]"


def test_two_reports_of_one_run_are_the_same_text() -> None:
    assert to_json(mixed()) == to_json(mixed())


def test_half_a_character_can_be_written() -> None:
    text = to_json(report(result("chat/x", "failed", "half \ud800")))
    assert parsed(text.encode().decode())["cases"][0]["message"] == "half \ud800"
