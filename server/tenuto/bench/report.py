"""A run's document as a table and as a plot."""

from collections.abc import Mapping
from html import escape
from typing import Any

from rich.table import Column, Table
from rich.text import Text

PLOTTED = ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "tokens_per_s")
STYLE = "text{font:13px sans-serif;dominant-baseline:middle}line{stroke:#357}circle{fill:#357}"


def table(found: Mapping[str, Any]) -> Table:
    """A row for each figure; a column for each target, and for each ratio."""
    columns = {name: target["over_rounds"] for name, target in found["targets"].items()}
    columns |= found["ratios"]
    headers = (Column(Text(name), justify="right") for name in columns)
    made = Table("min .. median .. max", *headers, box=None)
    for name in dict.fromkeys(name for spreads in columns.values() for name in spreads):
        made.add_row(name, *(_shown(spreads.get(name)) for spreads in columns.values()))
    return made


def svg(found: Mapping[str, Any]) -> str:
    """For each figure and target a line from the least to the greatest of the rounds, with a dot at
    their median; each figure has its own scale, from 0."""
    over = {target: row["over_rounds"] for target, row in found["targets"].items()}
    rows = [f"<style>{STYLE}</style>"]
    for name in PLOTTED:
        spreads = {target: figures[name] for target, figures in over.items() if name in figures}
        for target, spread in spreads.items():
            highest = max(spread["max"] for spread in spreads.values()) or 1
            low, dot, high = (240 + 400 * value / highest for value in spread.values())
            rows.append(
                f'<g transform="translate(0 {22 * len(rows)})"><text x="10">{name}</text>'
                f'<text x="120">{escape(target)}</text><line x1="{low}" x2="{high}"/>'
                f'<circle cx="{dot}" r="4"/><text x="660">{_shown(spread)}</text></g>'
            )
    size = f'width="860" height="{22 * len(rows)}"'
    return "\n".join((f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *rows, "</svg>\n"))


def _shown(spread: Mapping[str, Any] | None) -> str:
    """Of a spread, which begins with the least, the median and the greatest."""
    values = list(spread.values())[:3] if spread else []
    return " .. ".join(f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for v in values) or "-"
