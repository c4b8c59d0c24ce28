"""What a run's results mean, beside what was expected of it."""

from collections import Counter
from pathlib import Path

import pytest

from tenuto.conformance.cases import CaseError, all_cases, selected
from tenuto.conformance.run import Result
from tenuto.conformance.verdict import load_baseline
from tests.conformance.report.made import fine, mixed, report, result


def ids(results: list[Result]) -> list[str]:
    return [r.case.id for r in results]


def test_what_counts() -> None:
    made = mixed()
    assert ids(made.failures) == ["chat/broken", "completions/broken"]
    assert ids(made.warnings) == ["models/seen"]
    assert made.stale == ["models/mended"]
    assert not made.conforms


def test_a_server_conforms() -> None:
    assert fine().conforms
    assert report(result("a/b"), result("a/c", "not run"), result("a/d", "not applicable")).conforms
    assert report(result("a/b", "failed", level="observed")).conforms


def test_a_must_that_cannot_be_judged_leaves_no_verdict() -> None:
    unclear = result("a/b", "not judged")
    made = report(result("a/c"), unclear)
    assert (ids(made.unjudged), made.breaks, made.conforms) == (["a/b"], False, False)
    assert made.verdict == "no verdict"
    # Of what a server should do, nothing hangs on it.
    assert report(result("a/b", "not judged", level="observed")).verdict == "conforms"
    # What does not conform does not, whatever else is not known.
    assert report(unclear, result("a/c", "failed")).verdict == "does not conform"
    assert report(unclear, result("a/c"), expected={"a/c": "x"}).verdict == "does not conform"


@pytest.mark.parametrize("level", ["documented", "contract"])
def test_a_must_that_fails_breaks_it(level: str) -> None:
    failed = result("a/b", "failed", level="contract" if level == "contract" else "documented")
    assert not report(failed).conforms
    assert report(failed, expected={"a/b": "known"}).conforms
    assert not report(failed, expected={"a/other": "known"}).conforms


def test_what_was_expected_and_is_mended_is_stale() -> None:
    passed = report(result("a/b"), result("a/c"), expected={"a/b": "was wrong"})
    assert (passed.stale, passed.failures, passed.conforms) == (["a/b"], [], False)


@pytest.mark.parametrize("outcome", ["not run", "not applicable"])
def test_what_was_not_tried_is_not_stale(outcome: str) -> None:
    untried = result("a/b", "not run" if outcome == "not run" else "not applicable")
    assert report(untried, expected={"a/b": "x"}).conforms
    # Nor what this run did not choose.
    assert report(result("a/c"), expected={"a/b": "x"}).conforms


def test_an_expected_difference_is_no_warning() -> None:
    seen = result("a/b", "failed", level="observed")
    assert ids(report(seen).warnings) == ["a/b"]
    assert ids(report(seen, expected={"a/b": "x"}).warnings) == []
    mended = report(result("a/b", level="observed"), expected={"a/b": "x"})
    assert mended.stale == ["a/b"]


def test_counts_and_groups() -> None:
    made = mixed()
    assert made.counts() == Counter(
        {"passed": 2, "failed": 4, "not applicable": 1, "not run": 1, "not judged": 1}
    )
    assert made.counts([made.results[0].case, made.results[1].case]) == Counter(
        {"passed": 1, "failed": 1}
    )
    assert [(name, len(results)) for name, results in made.groups().items()] == [
        ("chat", 2),
        ("completions", 1),
        ("models", 6),
    ]


CASES = selected(all_cases(), ["models/*"])


def written(directory: Path, content: str | bytes) -> Path:
    path = directory / "baseline.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("models/list: it lists too much", {"models/list": "it lists too much"}),
        ("models/list: 5\nmodels/one: no", {"models/list": "5", "models/one": "False"}),
        ("", {}),
        ("# nothing is expected\n", {}),
        ("{}", {}),
    ],
)
def test_a_baseline_is_read(tmp_path: Path, content: str, expected: dict[str, str]) -> None:
    assert load_baseline(written(tmp_path, content), CASES) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("models/lists: x", "there is no case 'models/lists'"),
        ("chat/shape: x", "there is no case 'chat/shape'"),
        ("5: x", "there is no case 5"),
        ("models/list: [", "cannot read the baseline"),
        (b"models/list: \xff", "cannot read the baseline"),
        ("[models/list]", "a baseline is a map"),
        ("models/list", "a baseline is a map"),
        ("7", "a baseline is a map"),
    ],
)
def test_a_broken_baseline_is_named(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CaseError, match=words) as caught:
        load_baseline(path, CASES)
    assert str(path) in str(caught.value)


def test_a_baseline_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(CaseError, match="cannot read the baseline"):
            load_baseline(path, CASES)
