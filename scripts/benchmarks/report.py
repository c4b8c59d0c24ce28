"""What was measured, as lines of a table, as Markdown and as a JSON document. Pure."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from scripts.benchmarks.rows import STREAMS, Round, Row

SCHEMA_VERSION = 1
TITLES = ("row", "min", "median", "max", "reach", "beyond", "verdict")
MARKERS = ("<!-- scripts/bench --write: begin -->", "<!-- end -->")
NOT_AT_HAND = "not at hand"
Line = dict[str, Any]


def lines(rows: Sequence[Row], rounds: Sequence[Round]) -> list[Line]:
    return [_line(row, row.values(rounds)) for row in rows]


def _line(row: Row, values: Sequence[float]) -> Line:
    line = {"name": row.name, "at_least": row.at_least, "reach": row.reach, "beyond": row.beyond}
    if not values:
        return line | {"values": [], "verdict": NOT_AT_HAND}
    middle = median(values)
    spread = {"min": min(values), "median": middle, "max": max(values)}
    return line | {"values": list(values), **spread, "verdict": row.verdict(middle)}


def table(found: Sequence[Line]) -> Table:
    made = Table(*TITLES, box=None, padding=(0, 1), pad_edge=False)
    for column in made.columns[1:-1]:
        column.justify = "right"
    for line in found:
        made.add_row(*_cells(line))
    return made


def conditions(rounds: Sequence[Round]) -> str:
    """What makes tokens cheap (a busy server sends several in an event), and figures chance."""
    events: dict[str, list[float]] = {}
    others: list[float] = []
    for done in rounds:
        for (asked, subject), figures in done.items():
            if asked == STREAMS:
                events.setdefault(subject, []).append(figures["events_per_token"])
            others += [figures["others_cores"]] if "others_cores" in figures else []
    told = ", ".join(f"{subject} {median(values):.2f}" for subject, values in events.items())
    spread = f"{median(others):.2f}, at most {max(others):.2f}"
    return f"Events per streamed token: {told}. Cores that others took meanwhile: {spread}."


def markdown(
    found: Sequence[Line], rounds: Sequence[Round], versions: Mapping[str, str], command: str
) -> str:
    head = [f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    about = ", ".join(f"{name} {version}" for name, version in versions.items())
    told = f"`{command}`: {about}. {conditions(rounds)}"
    return "\n".join((told, "", *head, *(f"| {' | '.join(_cells(line))} |" for line in found)))


def written(text: str, part: str) -> str:
    """`text` with `part` between its markers. Errors: ValueError."""
    begin, end = MARKERS
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"the page lacks a marker: {begin} or {end}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def document(
    found: Sequence[Line], rounds: Sequence[Round], versions: Mapping[str, str], command: str
) -> str:
    """One line, with everything that was measured."""
    nested: list[dict[str, dict[str, Any]]] = [{} for _ in rounds]
    for into, done in zip(nested, rounds, strict=True):
        for (asked, subject), figures in done.items():
            into.setdefault(asked, {})[subject] = dict(figures)
    about = {"benchmarks": SCHEMA_VERSION, "command": command, "versions": dict(versions)}
    return json.dumps(about | {"rows": list(found), "rounds": nested})


def _cells(line: Line) -> list[str]:
    sign = "≥" if line["at_least"] else "≤"
    spread = [f"{line[name]:.3g}" if name in line else "-" for name in ("min", "median", "max")]
    limits = [
        f"{sign} {line[name]:g}" if line[name] is not None else "-" for name in ("reach", "beyond")
    ]
    return [line["name"], *spread, *limits, line["verdict"]]
