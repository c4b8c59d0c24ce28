"""From rounds to the table, the page and the document."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scripts.benchmarks import report
from scripts.benchmarks.rows import RUST, STREAMS, TENUTO, VLLM, Round, Row, ratio

BOTH, VERSIONS = (TENUTO, VLLM), {"vLLM": "0.32.0", "cores": "2"}
ROWS = (
    Row("cost / vLLM", STREAMS, "ms", BOTH, ratio, 0.5, 0.4),
    Row("rate / vLLM", STREAMS, "per_s", BOTH, ratio, None, 1.5, at_least=True),
    Row("cost / Rust", STREAMS, "ms", (TENUTO, RUST), ratio, 2, 1),
)
ROUNDS: list[Round] = [
    {
        (STREAMS, TENUTO): {"ms": ms, "per_s": 15, "events_per_token": 0.9, "others_cores": 0.1},
        (STREAMS, VLLM): {"ms": 10, "per_s": 10, "events_per_token": events, "others_cores": 0},
        ("counter", TENUTO): {"ratio": 0.5},
    }
    for ms, events in ((6, 0.7), (2, 0.8), (4.5, 1))
]
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def test_lines() -> None:
    cost, rate, rust = report.lines(ROWS, ROUNDS)
    assert cost["values"] == [0.6, 0.2, 0.45]
    assert (cost["min"], cost["median"], cost["max"]) == (0.2, 0.45, 0.6)
    assert (cost["verdict"], rate["verdict"]) == ("reach", "beyond")
    assert (rust["values"], rust["verdict"]) == ([], "not at hand")


def test_the_table_tells_the_same_as_the_page() -> None:
    lines, output = report.lines(ROWS, ROUNDS), StringIO()
    Console(file=output, width=140).print(report.table(lines))
    page = report.markdown(lines, ROUNDS, VERSIONS, "scripts/bench")
    rows = [line.replace("|", " ").split() for line in page.splitlines() if "/" in line[3:]]
    assert [line.split() for line in output.getvalue().splitlines()[1:]] == rows[1:]


def test_markdown() -> None:
    about, _, _, _, cost, rate, rust = report.markdown(
        report.lines(ROWS, ROUNDS), ROUNDS, VERSIONS, "scripts/bench --rounds 3"
    ).splitlines()
    assert about == (
        "`scripts/bench --rounds 3`: vLLM 0.32.0, cores 2. "
        "Events per streamed token: tenuto 0.90, vllm 0.80. "
        "Cores that others took meanwhile: 0.05, at most 0.10."
    )
    assert cost == "| cost / vLLM | 0.2 | 0.45 | 0.6 | ≤ 0.5 | ≤ 0.4 | reach |"
    assert rate == "| rate / vLLM | 1.5 | 1.5 | 1.5 | - | ≥ 1.5 | beyond |"
    assert rust == "| cost / Rust | - | - | - | ≤ 2 | ≤ 1 | not at hand |"


def test_written_between_the_markers() -> None:
    begin, end = report.MARKERS
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    new = f"before\n{begin}\nnew\n{end}\nafter\n"
    assert report.written(page, "new") == new
    assert report.written(new, "new") == new


@pytest.mark.parametrize("page", ["", report.MARKERS[0], report.MARKERS[1]])
def test_a_page_without_markers(page: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        report.written(page, "new")


def test_the_page_has_its_markers() -> None:
    assert "\nnew\n" in report.written(PAGE.read_text(), "new")


def test_document() -> None:
    text = report.document(report.lines(ROWS, ROUNDS), ROUNDS, VERSIONS, "scripts/bench")
    found = json.loads(text)
    assert "\n" not in text
    assert found["versions"] == VERSIONS
    assert [row["name"] for row in found["rows"]] == [row.name for row in ROWS]
    assert [r[STREAMS][TENUTO]["ms"] for r in found["rounds"]] == [6, 2, 4.5]
