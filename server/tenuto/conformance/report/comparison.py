"""A comparison side by side, for a terminal and for machines."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tenuto.conformance.compare import Comparison, Found
from tenuto.conformance.differing import Difference
from tenuto.conformance.quirks import KINDS, Verdict
from tenuto.conformance.report.curl import cut, legible

MAX_WHY = 120
# What a reader must look at comes first.
STYLES = {"new": "bold red", "breaks": "yellow", "expected": "magenta", "known": "dim"}
Groups = Mapping[tuple[Difference, Verdict], list[str]]


def print_comparison(console: Console, comparison: Comparison, all_known: bool = False) -> None:
    """Equal differences of several requests are one row; known ones are counted unless asked for.

    The JSON form has every one.
    """
    shown = [f for f in comparison.found if all_known or f.verdict.kind != "known"]
    if shown:
        console.print(_table(comparison, _grouped(shown)), highlight=False)
    for row in comparison.stale:
        text = f"stale, take it out of the baseline: {row.request} {row.aspect} ({row.why})"
        console.print(Text(legible(text), STYLES["new"]), highlight=False)
    for why, count in _reasons(comparison).items():
        console.print(Text(legible(f"{count} not compared: {why}"), "dim"), highlight=False)
    console.print(_summary(comparison), highlight=False)


def to_json(comparison: Comparison) -> str:
    # Escaped, since an answer may hold halves of characters that no file can be written with.
    return json.dumps(_data(comparison), indent=2, ensure_ascii=True) + "\n"


def _table(comparison: Comparison, groups: Groups) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("request", "aspect", f"A: {comparison.a}", f"B: {comparison.b}", "class"):
        table.add_column(Text(legible(name)), overflow="fold")
    for (difference, verdict), requests in groups.items():
        name = requests[0] if len(requests) == 1 else f"{requests[0]} and {len(requests) - 1} more"
        cells = (name, difference.aspect, difference.a, difference.b)
        style = "bold red" if not verdict.is_accepted else STYLES[verdict.kind]
        # Text, since the brackets of a path would be taken for markup.
        table.add_row(*(Text(legible(cell)) for cell in cells), Text(_said(verdict), style))
    return table


def _grouped(found: Iterable[Found]) -> Groups:
    groups: dict[tuple[Difference, Verdict], list[str]] = {}
    for f in sorted(found, key=lambda f: (f.verdict.is_accepted, KINDS.index(f.verdict.kind))):
        groups.setdefault((f.difference, f.verdict), []).append(f.request)
    return groups


def _said(verdict: Verdict) -> str:
    why = legible(cut(verdict.why, MAX_WHY)).replace("\n", " ")
    if verdict.kind == "breaks":
        return f"{verdict.side} breaks {verdict.source} ({verdict.level}): {why}"
    return f"{verdict.kind}: {why}" if why else verdict.kind


def _reasons(comparison: Comparison) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for why in comparison.not_compared.values():
        short = cut(why, MAX_WHY).replace("\n", " ")
        reasons[short] = reasons.get(short, 0) + 1
    return reasons


def _summary(comparison: Comparison) -> Text:
    word, style = (
        ("conforms", "bold green") if comparison.conforms else ("does not conform", "bold red")
    )
    counts = ", ".join(f"{n:,} {name}" for name, n in _counts(comparison).items() if n)
    number = len(comparison.pairs)
    compared = f"{number:,} request{'' if number == 1 else 's'} compared"
    return Text.assemble(("B ", ""), (word, style), f": {compared}, {counts or 'no differences'}")


def _counts(comparison: Comparison) -> dict[str, int]:
    sides = [f.verdict.side for f in comparison.found]
    kinds = comparison.counts()
    return {
        "new": kinds["new"],
        "broken by A": sides.count("A"),
        "broken by B": sides.count("B"),
        "expected": kinds["expected"],
        "known": kinds["known"],
        "stale": len(comparison.stale),
        "not compared": len(comparison.not_compared),
    }


def _data(comparison: Comparison) -> dict[str, Any]:
    return {
        "a": comparison.a,
        "b": comparison.b,
        "conforms": comparison.conforms,
        "compared": len(comparison.pairs),
        "counts": {name.replace(" ", "_"): n for name, n in _counts(comparison).items()},
        "differences": [_row(found) for found in comparison.found],
        "stale": [row.model_dump() for row in comparison.stale],
        "not_compared": dict(comparison.not_compared),
    }


def _row(found: Found) -> dict[str, Any]:
    difference, verdict = found.difference, found.verdict
    return {
        "request": found.request,
        "aspect": difference.aspect,
        "a": difference.a,
        "b": difference.b,
        "class": verdict.kind,
        "why": verdict.why,
        "level": verdict.level,
        "source": verdict.source,
        "broken_by": verdict.side,
        "accepted": verdict.is_accepted,
    }
