"""What scripts/simulate_cluster.py found: tables, their place in docs/scaling.md, and the plot."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from scripts.cluster_load import MODELS

if TYPE_CHECKING:
    from scripts.simulate_cluster import Cluster

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
PLOT = PAGE.with_suffix(".svg")
MARKERS = ("<!-- scripts.simulate_cluster --write: begin -->", "<!-- end -->")
# Front ends, one for each host, and the databases that they share.
TOKEN_S, REQUEST_S = 40e-6, 1.2e-3
MAX_ROWS_PER_S, MAX_REDIS_PER_S, REDIS_CALLS = 7_000, 25_000, 2
# As many as a Postgres takes that nobody has set up, without those that it keeps for itself.
MAX_CONNECTIONS, CONNECTIONS_EACH = 97, 2
# What Ray Serve's controller hears: pushes of front ends, and their looks at all models; it checks
# each replica. Of its one core, by `scripts.benchmarks.controller`: its loop over the models and
# each replica, and what each of these costs.
PUSH_S, LOOK_S, CHECK_S, SELDOM_S, OFTEN_S = 10.0, 10.0, 10.0, 30.0, 2.0
MODELS_SHARE, REPLICA_SHARE = 0.067, 0.00025
PUSH_COST_S, LOOK_COST_S, CHECK_COST_S = 1.25e-3, 4e-3, 5e-4
# For each replica of its model.
PUSH_REPLICA_COST_S = 1.6e-5
CLASSES, COLUMNS = (1, 2, 4, 8), 150
Waits = Counter[tuple[int, float]]
Rows = list[list[str]]


def quantiles(waits: Waits, shares: Sequence[float], gpus: int | None = None) -> list[float]:
    """Nearest ranks, in seconds, of the models of so many GPUs, or of all."""
    found = sorted((wait, count) for (of, wait), count in waits.items() if gpus in (None, of))
    sums = list(accumulate(count for _, count in found))
    total = sums[-1] if sums else 0
    return [
        next(
            (wait for (wait, _), sum_ in zip(found, sums, strict=True) if sum_ >= share * total),
            0.0,
        )
        for share in shares
    ]


def shares(cluster: Cluster) -> dict[str, float]:
    """Of each part's capacity, in the busiest minute."""
    hosts, requests_per_s = cluster.plan.hosts, cluster.requests.max() / 60
    replicas = max(replicas for *_, replicas in cluster.rounds)
    busy_s = (cluster.requests * REQUEST_S + cluster.tokens * TOKEN_S).max()
    return {
        "front ends": busy_s / 60 / hosts,
        "controller": controller_share(hosts, replicas),
        "controller, looks every 2 s": controller_share(hosts, replicas, look_s=OFTEN_S),
        "controller, pushes every 30 s": controller_share(hosts, replicas, push_s=SELDOM_S),
        "Postgres, rows": requests_per_s / MAX_ROWS_PER_S,
        "Postgres, connections": hosts * CONNECTIONS_EACH / MAX_CONNECTIONS,
        "Redis": requests_per_s * REDIS_CALLS / MAX_REDIS_PER_S,
    }


def controller_share(
    front_ends: int, replicas: int, push_s: float = PUSH_S, look_s: float = LOOK_S
) -> float:
    """Of its one core, with a push and a look of each front end in so many seconds."""
    pushes_s = len(MODELS) * PUSH_COST_S + replicas * PUSH_REPLICA_COST_S
    of_front_end = pushes_s / push_s + LOOK_COST_S / look_s
    of_replica = REPLICA_SHARE + CHECK_COST_S / CHECK_S
    return MODELS_SHARE + front_ends * of_front_end + replicas * of_replica


def show(days: Sequence[Cluster], evenings: Sequence[Cluster], is_written: bool) -> None:
    tables = of_days(days), of_sizes(evenings)
    console = Console(width=None if sys.stdout.isatty() else COLUMNS)
    for rows in tables:
        console.print(_table(rows), "")
    if is_written:
        PAGE.write_text(written(PAGE.read_text(), tables))
        _plot(days, evenings)


def of_days(days: Sequence[Cluster]) -> Rows:
    waits = [f"wait, {gpus} GPU" for gpus in CLASSES]
    head = ["hosts", *waits, "cold starts", "requests that met one", "their wait", "GPU-hours"]
    return [head, *(_of_day(day) for day in days)]


def _of_day(day: Cluster) -> list[str]:
    waits = [_seconds(quantiles(day.waits, (0.5, 0.99, 1), gpus)) for gpus in CLASSES]
    met = day.cold_waits.total()
    cold = _seconds(quantiles(day.cold_waits, (0.5, 0.99, 1))) if met else "-"
    gpu_hours = sum(used for _, used, *_ in day.rounds) / len(day.rounds) * day.plan.hours
    number = f"{met:,} ({met / day.waits.total():.2%})"
    return [day.plan.name, *waits, str(day.cold_starts), number, cold, f"{gpu_hours:,.0f}"]


def _seconds(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.0f}" for value in values)


def of_sizes(evenings: Sequence[Cluster]) -> Rows:
    parts = [shares(evening) for evening in evenings]
    rows = [["hosts", "requests/s", "tokens/s", *parts[0], "wait"]]
    for evening, used in zip(evenings, parts, strict=True):
        per_s = [f"{(of.max() / 60):,.0f}" for of in (evening.requests, evening.tokens)]
        wait = _seconds(quantiles(evening.waits, (0.5, 0.99, 1)))
        rows.append([str(evening.plan.hosts), *per_s, *map("{:.1%}".format, used.values()), wait])
    hosts = [evening.plan.hosts for evening in evenings]
    # Front ends grow with the hosts.
    full = [
        "-" if name == "front ends" else _full_at(hosts, [part[name] for part in parts])
        for name in parts[0]
    ]
    return [*rows, ["full at", "", "", *full, ""]]


def _full_at(hosts: Sequence[int], shares: Sequence[float]) -> str:
    """Between two sizes, or beyond the last, along a straight line."""
    at = next((at for at, share in enumerate(shares) if at and share >= 1), len(shares) - 1)
    slope = (shares[at] - shares[at - 1]) / (hosts[at] - hosts[at - 1])
    return f"{hosts[at] + (1 - shares[at]) / slope:,.0f}"


def _table(rows: Rows) -> Table:
    made = Table(*rows[0], box=None, padding=(0, 1), pad_edge=False)
    for row in rows[1:]:
        made.add_row(*row)
    return made


def _markdown(rows: Rows) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if not number:
            yield "|---" * len(row) + "|"


def written(text: str, tables: Sequence[Rows]) -> str:
    """`text` with the tables between its markers. Errors: ValueError."""
    begin, end = MARKERS
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"the page lacks a marker: {begin} or {end}")
    middle = "\n\n".join("\n".join(_markdown(rows)) for rows in tables)
    return f"{before}{begin}\n{middle}\n{end}{after}"


def _plot(days: Sequence[Cluster], evenings: Sequence[Cluster]) -> None:
    # Imported late: only --write needs it.
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "scaling", "svg.fonttype": "none", "axes.grid": True}
    )
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    _draw_day(left, days[:2])
    _draw_waits(middle, days)
    _draw_sizes(right, evenings)
    figure.savefig(PLOT, metadata={"Date": None})


def _draw_day(axes: Any, days: Sequence[Cluster]) -> None:
    for day, color, name in zip(days, ("tab:cyan", "tab:blue"), ("factor 1", "0.5"), strict=True):
        hours, used, *_ = zip(*day.rounds[::30], strict=True)
        axes.plot(hours, used, color=color, linewidth=1, label=f"GPUs in use, {name}")
    requests = days[-1].requests[:-1].reshape(-1, 5).mean(axis=1) / 60
    axes.set(title="100 hosts, min: 1", xlabel="hour of the day", ylabel="GPUs", ylim=(0, None))
    axes.legend(loc="lower left")
    beside = axes.twinx()
    beside.grid(visible=False)
    beside.plot([number / 12 for number in range(len(requests))], requests, color="tab:orange")
    beside.set_ylim(0, None)
    beside.set_ylabel("requests/s", color="tab:orange")


def _draw_waits(axes: Any, days: Sequence[Cluster]) -> None:
    for day in days:
        seconds = range(0, ceil(max(wait for _, wait in day.waits)) + 5, 5)
        longer = [
            sum(count for (_, wait), count in day.waits.items() if wait > least) / day.waits.total()
            for least in seconds
        ]
        dashes = "--" if day.plan.hosts < days[0].plan.hosts else "-"
        axes.plot(seconds, longer, dashes, label=_title(day))
    axes.set(title="part of the requests that waits longer", xlabel="seconds")
    axes.set(yscale="log", ylim=(1e-6, 0.1))
    axes.legend()


def _title(day: Cluster) -> str:
    return f"hosts: {day.plan.name}".replace("`", "")


def _draw_sizes(axes: Any, evenings: Sequence[Cluster]) -> None:
    hosts = [evening.plan.hosts for evening in evenings]
    parts = [shares(evening) for evening in evenings]
    for name in parts[0]:
        axes.plot(hosts, [part[name] for part in parts], marker=".", label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(title="part of its capacity in use, in the busiest minute", xlabel="hosts")
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 10))
    axes.set_xticks(hosts, [str(number) for number in hosts])
    axes.minorticks_off()
    axes.legend()
