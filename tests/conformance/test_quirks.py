"""The known differences: the rows of quirks.yaml are those that docs/api.md shows."""

import re
from pathlib import Path

import pytest

from tenuto.conformance import quirks
from tenuto.conformance.cases import CaseError
from tenuto.conformance.differing import Difference
from tenuto.conformance.exchange import Request
from tenuto.conformance.quirks import Quirk, Verdict, all_quirks, load_expected, quirk_of, way_of
from tenuto.conformance.recording import BUNDLED, Recording

DOCS = Path(__file__).parents[2] / "docs/api.md"
HEADING = "## Differences from the recorded stack"
CHAT = Request("POST", "/v1/chat/completions", {})
Row = tuple[tuple[str, ...], tuple[str, ...], str, str, str, str]


def documented() -> list[Row]:
    text = DOCS.read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]
    return [(tuple(r.split(", ")), tuple(w.split(", ")), *rest) for r, w, *rest in rows[1:]]  # type: ignore[misc]


def test_the_documentation_has_the_same_rows() -> None:
    rows = [(q.requests, q.aspects, *q.values, q.why, q.breaks or "") for q in all_quirks()]
    assert documented() == rows


def test_it_is_always_the_recorded_side_that_breaks_something() -> None:
    """So the table says, which has no column for the side."""
    assert {q.broken_by == q.values[0] for q in all_quirks() if q.breaks} == {True}


def test_every_row_is_about_recorded_requests() -> None:
    requests = Recording.open(BUNDLED / "hosted-stack").requests
    unknown = [
        (quirk.requests, glob)
        for quirk in all_quirks()
        for glob in quirk.requests
        if not any(
            quirk.model_copy(update={"requests": (glob,)}).is_of(name, request)
            for name, request in requests.items()
        )
    ]
    assert unknown == []


def test_no_two_rows_explain_one_difference() -> None:
    requests = Recording.open(BUNDLED / "hosted-stack").requests
    twice = [
        (name, aspect, quirk.values)
        for name, request in requests.items()
        for quirk in all_quirks()
        for aspect in quirk.aspects
        if quirk.is_of(name, request)
        and sum(
            q.is_of(name, request) and q.explains(Difference(aspect, *quirk.values))
            for q in all_quirks()
        )
        > 1
    ]
    assert twice == []


@pytest.mark.parametrize(
    ("path", "body", "way"),
    [
        ("/v1/chat/completions", {}, "chat"),
        ("/engines/x/chat/completions", {"stream": True}, "chat-stream"),
        ("/completions", {"stream": False}, "completions"),
        ("/v1/completions", {"stream": True}, "completions-stream"),
        ("/v1/completions", None, "completions"),
        ("/v1/models", None, ""),
    ],
)
def test_way(path: str, body: object, way: str) -> None:
    assert way_of(Request("POST", path, body)) == way


def test_a_row_is_symmetrical_and_blames_the_side_with_the_value() -> None:
    quirk = Quirk(
        requests=("a*", "chat-stream"),
        aspects=("status",),
        values=("200", "400"),
        why="because",
        breaks="hosted/best_of",
        broken_by="200",
    )
    for values, side in ((("200", "400"), "A"), (("400", "200"), "B")):
        difference = Difference("status", *values)
        assert quirk_of("abc", CHAT, difference, [quirk]) is quirk
        verdict = quirk.verdict(difference)
        assert verdict == Verdict("breaks", "because", "documented", "hosted/best_of", side)  # type: ignore[arg-type]
        assert verdict.is_accepted == (side == "A")
    for name, difference in (
        ("b", Difference("status", "200", "400")),
        ("abc", Difference("other", "200", "400")),
        ("abc", Difference("status", "200", "500")),
    ):
        assert quirk_of(name, CHAT, difference, [quirk]) is None


@pytest.mark.parametrize(
    "row",
    [
        {"requests": []},
        {"values": ["one"]},
        {"breaks": "hosted/nothing", "broken_by": "x"},
        {"breaks": "hosted/n"},
        {"breaks": "hosted/n", "broken_by": "z"},
        {"more": 1},
    ],
)
def test_a_bad_row_is_named(row: dict[str, object]) -> None:
    usual = {"requests": ["a"], "aspects": ["b"], "values": ["x", "y"], "why": "so"}
    assert quirks._row("quirks.yaml", Quirk, usual).breaks is None
    with pytest.raises(CaseError, match=r"quirks\.yaml"):
        quirks._row("quirks.yaml", Quirk, usual | row)


@pytest.mark.parametrize(
    "text", ["a: b", "[{request: a}]", "[1]", "[", "- {request: a, aspect: b}"]
)
def test_a_bad_baseline_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "expected.yaml"
    path.write_text(text)
    with pytest.raises(CaseError, match=re.escape(str(path))):
        load_expected(path)


def test_a_baseline_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "expected.yaml"
    path.touch()
    assert load_expected(path) == ()
    with pytest.raises(CaseError, match="nowhere"):
        load_expected(tmp_path / "nowhere")
