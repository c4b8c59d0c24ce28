"""A run in a terminal or a log: what it will cost, how far it is, what it found."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tenuto.conformance.report.curl import curl, cut, failing, legible
from tenuto.conformance.report.json_report import STANDINGS, Standing, reasons, tally
from tenuto.conformance.run import Cost, Result
from tenuto.conformance.verdict import Report

MAX_COLUMNS = 100
MAX_QUOTE = 400
MAX_MESSAGE = 600
MAX_SHORT_MESSAGE = 160
STYLES: dict[Standing, str] = {
    "passed": "green",
    "failed": "bold red",
    "differs": "yellow",
    "expected": "magenta",
    "not applicable": "dim",
    "not judged": "bold yellow",
    "not run": "dim",
}


def print_cost(console: Console, cost: Cost, num_cases: int) -> None:
    requests, cases = _counted(cost.requests, "request"), _counted(num_cases, "case")
    _say(console, Text(f"{cases}: {requests}, at most {_counted(cost.tokens, 'token')}"))


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[Result], None]]:
    """A bar that is gone at the end. Yields what takes each result."""
    bar = Progress(
        TextColumn("conforming"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[num_failed]} failed"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=total, num_failed=0)
    num_failed = num_done = 0

    def add(result: Result) -> None:
        nonlocal num_failed, num_done
        num_done += 1
        num_failed += result.breaks
        bar.update(task, advance=1, num_failed=num_failed)

    began = bar.get_time()
    try:
        with bar:
            yield add
    finally:
        took_s = bar.get_time() - began
        if num_done:
            _say(console, Text(f"{num_done:,} of {_counted(total, 'case')} in {took_s:.1f} s"))


def print_report(console: Console, report: Report) -> None:
    _say(console, _table(report))
    for reason, count in reasons(report.results).items():
        _say(console, Text(f"{count:,} {legible(cut(reason, MAX_SHORT_MESSAGE))}", "dim"))
    for result in report.failures:
        _print_failure(console, result, report)
    _print_warnings(console, report.warnings)
    _print_stale(console, report)
    _say(console, Text())
    _say(console, _verdict(report))


def _table(report: Report) -> Table:
    total = tally(report.results, report)
    # Whatever never happened needs no column, but for the two that a reader looks for.
    shown = [name for name in STANDINGS if total[name] or name in ("passed", "failed")]
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("group", overflow="fold")
    for name in ("cases", *shown):
        table.add_column(name, justify="right")
    for group, results in report.groups().items():
        table.add_row(group, *_cells(len(results), tally(results, report), shown))
    table.add_row("all", *_cells(len(report.results), total, shown), style="bold")
    return table


def _cells(
    num_cases: int, counts: dict[Standing, int], shown: Sequence[Standing]
) -> Iterator[Text]:
    yield Text(f"{num_cases:,}")
    for name in shown:
        yield Text(
            f"{counts[name]:,}" if counts[name] else "-", STYLES[name] if counts[name] else "dim"
        )


def _print_failure(console: Console, result: Result, report: Report) -> None:
    case = result.case
    _say(console, Text())
    _say(console, Text.assemble((case.id, STYLES["failed"]), f"  {case.level}"))
    grid = Table.grid(padding=(0, 2))
    for name, value in (
        ("requires", case.requires),
        ("source", f'"{cut(case.quote, MAX_QUOTE)}" ({case.source})'),
        ("found", cut(result.message, MAX_MESSAGE)),
    ):
        grid.add_row(Text(name, "dim"), Text(legible(value), overflow="fold"))
    _say(console, Padding(grid, (0, 0, 0, 2), expand=False))
    if found := failing(result):
        line = legible(curl(found[1].request, report.target))
        # Broken into lines, it could not be copied.
        console.print(Text(f"  {line}"), soft_wrap=True, highlight=False)


def _print_warnings(console: Console, warnings: Sequence[Result]) -> None:
    if not warnings:
        return
    _say(console, Text("\nDiffers from what was observed; this does not count:"))
    for result in warnings:
        message = legible(cut(result.message, MAX_SHORT_MESSAGE)).replace("\n", " ")
        line = Text.assemble((result.case.id, STYLES["differs"]), f"  {message}", overflow="fold")
        _say(console, Padding(line, (0, 0, 0, 2), expand=False))


def _print_stale(console: Console, report: Report) -> None:
    if not report.stale:
        return
    _say(console, Text("\nExpected to fail, and passed; take these out of the baseline:"))
    for id in report.stale:
        line = Text.assemble((id, STYLES["failed"]), f"  {legible(report.expected[id])}")
        _say(console, Padding(line, (0, 0, 0, 2), expand=False))


def _verdict(report: Report) -> Text:
    counts = [f"{n:,} {name}" for name, n in tally(report.results, report).items() if n]
    if report.stale:
        counts.append(f"{len(report.stale):,} stale")
    style = "bold green" if report.conforms else "bold red"
    return Text.assemble((report.verdict, style), f": {', '.join(counts) or 'no cases'}")


def _say(console: Console, what: Text | Table | Padding) -> None:
    console.print(what, width=min(console.width, MAX_COLUMNS), highlight=False)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
