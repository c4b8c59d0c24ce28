"""The report as one page to read and to send around: no script, no other file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from tenuto.conformance.cases import LEVELS, Case, Level, Way
from tenuto.conformance.exchange import Exchange
from tenuto.conformance.report.curl import curl, cut, failing, legible
from tenuto.conformance.report.json_report import (
    MAX_TEXT,
    STANDINGS,
    Standing,
    reasons,
    shown_headers,
    standing,
    tally,
)
from tenuto.conformance.run import Result
from tenuto.conformance.verdict import Report

WAYS: tuple[Way, ...] = ("chat", "chat-stream", "completions", "completions-stream")
MARKS: dict[Standing, tuple[str, str]] = {
    "passed": ("passed", "The server does what is required."),
    "failed": ("failed", "It does not, and so it does not conform."),
    "differs": ("differs", "It does not do what was observed. This does not count."),
    "expected": ("known", "It fails, as the baseline of expected failures says."),
    "not applicable": ("n/a", "The server has not what the case needs."),
    "not judged": ("not judged", "The model, or a limit, did not let the kit find out."),
    "not run": ("not run", "The case was not tried."),
}
LEGEND: dict[Level, str] = {
    "documented": "The hosted API's own documentation says so. The server must do it.",
    "contract": "OpenAI's API reference, or a standard beneath, says so, and clients rely on it. "
    "The server must do it.",
    "observed": "The hosted API, or the software that it runs, was seen to do so. No one promises "
    "it: a difference is shown and does not count.",
}


@dataclass(frozen=True)
class Mark:
    """`word` is what a reader sees. One with a `story` links to it."""

    standing: Standing
    word: str
    story: str | None


@dataclass(frozen=True)
class Row:
    """A case that is asked in several ways; None where it is not asked."""

    name: str
    case: Case
    marks: list[Mark | None]


@dataclass(frozen=True)
class Bar:
    level: Level
    total: int
    counts: dict[Standing, int]


@dataclass(frozen=True)
class Shown:
    """An exchange as the page shows it."""

    name: str
    curl: str
    status: str
    headers: list[tuple[str, str]]
    text: str


@dataclass(frozen=True)
class Story:
    """A failure: the exchange that it is about, and the others of the case."""

    anchor: str
    case: Case
    mark: Mark
    message: str
    expected: str | None
    shown: Shown | None
    others: list[Shown]


def to_html(report: Report) -> str:
    page = _template().render(
        report=report,
        began=report.began_at.astimezone(UTC),
        bars=list(_bars(report)),
        ways=WAYS,
        rows=_rows(report),
        lists=_lists(report),
        sections=_sections(report),
        known=[_story(r, report) for r in _of("expected", report)],
        stale=[(id, report.expected[id]) for id in report.stale],
        untried=reasons(report.results),
        totals=tally(report.results, report),
        marks=MARKS,
        legend=LEGEND,
        num_cases=len(report.results),
    )
    return legible(page)


@cache
def _template() -> Template:
    source = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def _bars(report: Report) -> Iterator[Bar]:
    for level in LEVELS:
        results = [r for r in report.results if r.case.level == level]
        counts = tally(results, report)
        yield Bar(level, len(results), {name: counts[name] for name in STANDINGS if counts[name]})


def _rows(report: Report) -> dict[str, list[Row]]:
    """The cases that are asked in several ways, by the source that they rest on."""
    found: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in report.results:
        case = result.case
        if case.way:
            name = case.id.removeprefix(f"{case.way}/")
            found.setdefault((case.source, name, case.requires), {})[case.way] = result
    rows: dict[str, list[Row]] = {}
    for (source, name, _), results in found.items():
        marks = [_mark(results[way], report) if way in results else None for way in WAYS]
        case = next(iter(results.values())).case
        rows.setdefault(source, []).append(Row(name, case, marks))
    return rows


def _lists(report: Report) -> dict[str, list[tuple[Case, Mark]]]:
    """The other cases by group."""
    return {
        group: [(r.case, _mark(r, report)) for r in results]
        for group, results in report.groups().items()
        if group not in WAYS
    }


def _sections(report: Report) -> list[tuple[str, str, list[Story]]]:
    failed = [_story(r, report) for r in _of("failed", report)]
    differs = [_story(r, report) for r in _of("differs", report)]
    return [
        ("Failures", "Requirements of the documentation and of the contract, not met.", failed),
        ("Differences", "Seen on the hosted API, and not here. They do not count.", differs),
    ]


def _of(wanted: Standing, report: Report) -> Sequence[Result]:
    return [r for r in report.results if standing(r, report) == wanted]


def _mark(result: Result, report: Report) -> Mark:
    found = standing(result, report)
    return Mark(found, MARKS[found][0], _anchor(result) if result.outcome == "failed" else None)


def _anchor(result: Result) -> str:
    return f"case-{result.case.id}"


def _story(result: Result, report: Report) -> Story:
    found = failing(result)
    name = found[0] if found else None
    shown = {n: _shown(n, e, report.target) for n, e in result.exchanges.items()}
    return Story(
        anchor=_anchor(result),
        case=result.case,
        mark=_mark(result, report),
        message=result.message,
        expected=report.expected.get(result.case.id),
        shown=shown[name] if name is not None else None,
        others=[exchange for n, exchange in shown.items() if n != name],
    )


def _shown(name: str, exchange: Exchange, target: str) -> Shown:
    status = "no answer" if exchange.status is None else f"status {exchange.status}"
    parts = [status, exchange.failure or "", f"{exchange.elapsed_s:.2f} s"]
    return Shown(
        name=name,
        curl=curl(exchange.request, target),
        status=", ".join(filter(None, parts)),
        headers=list(shown_headers(exchange).items()),
        text=cut(exchange.text, MAX_TEXT),
    )
