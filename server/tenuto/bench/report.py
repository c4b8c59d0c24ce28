"""A run as a JSON document, a table and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from rich.table import Table

from tenuto.bench.figures import over_rounds, ratios
from tenuto.bench.load import Load
from tenuto.bench.session import Target

SCHEMA_VERSION = 1
PLOTTED = ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "tokens_per_s")
STYLE = "text{font:13px sans-serif}line{stroke:#357;stroke-width:2}circle{fill:#357}"
ROW, LEFT, SPAN = 22, 160, 440


def document(targets: Sequence[Target], load: Load, ended: str) -> dict[str, Any]:
    """Everything that was measured. Another meaning of a name means another version."""
    rows = {
        target.name: {
            "url": target.address.url,
            "over_rounds": over_rounds(target.rounds),
            "rounds": target.rounds,
        }
        for target in targets
    }
    first, *others = targets
    pairs = {f"{first.name}/{other.name}": ratios(first.rounds, other.rounds) for other in others}
    about = {"tenuto_bench": SCHEMA_VERSION, "ended": ended, "load": asdict(load)}
    return {**about, "targets": rows, "ratios": pairs}


def table(found: Mapping[str, Any]) -> Table:
    """A row for each figure: the median of each target's rounds, and the ratios."""
    targets = [target["over_rounds"] for target in found["targets"].values()]
    made = Table("median of rounds", box=None, padding=(0, 1), pad_edge=False)
    for title in (*found["targets"], *(f"{pair} min .. median .. max" for pair in found["ratios"])):
        made.add_column(title, justify="right")
    for name in dict.fromkeys(name for figures in targets for name in figures):
        medians = [
            _shown(figures[name]["median"]) if name in figures else "-" for figures in targets
        ]
        over = [pair.get(name) for pair in found["ratios"].values()]
        spreads = [" .. ".join(map(_shown, list(s.values())[:3])) if s else "-" for s in over]
        made.add_row(name, *medians, *spreads)
    return made


def svg(found: Mapping[str, Any]) -> str:
    """For each figure and target a dot at the median of the rounds, on a line from min to max."""
    parts, y = [f"<style>{STYLE}</style>"], 0
    for name in PLOTTED:
        spreads = {t: row["over_rounds"].get(name) for t, row in found["targets"].items()}
        highest = max((s["max"] for s in spreads.values() if s), default=0) or 1
        y += 2 * ROW
        parts.append(f'<text x="10" y="{y}">{name}, from 0 to {_shown(highest)}</text>')
        for target, spread in spreads.items():
            y += ROW
            parts.append(f'<text x="20" y="{y}">{escape(target)}</text>')
            if spread:
                low, dot, high = (LEFT + SPAN * v / highest for v in spread.values())
                line = f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y - 4}" y2="{y - 4}"/>'
                circle = f'<circle cx="{dot:.1f}" cy="{y - 4}" r="4"/>'
                said = f'<text x="{LEFT + SPAN + 15}" y="{y}">{_shown(spread["median"])}</text>'
                parts += [line, circle, said]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + SPAN + 90}" height="{y + ROW}">'
    return "\n".join((head, *parts, "</svg>\n"))


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
