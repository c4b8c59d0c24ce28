"""`tenuto bench`: how fast is a server, and which of two is faster? Needs no vLLM and no GPU."""

import json
import os
from collections.abc import Sequence
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tenuto.bench import report, session
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cost_of
from tenuto.cli.printing import print_table

# Above this share of a core the generator may be what is measured.
BUSY = 0.7


def bench(
    *,
    target: Annotated[list[str], typer.Option(help="NAME=URL; several take turns: A B A B.")],
    pid: Annotated[list[str] | None, typer.Option(help="NAME=PID: what it costs.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The variable with the key.")] = None,
    body: Annotated[str, typer.Option(help="More fields: '{\"top_k\": 40}'.")] = "{}",
    plot: Annotated[Path | None, typer.Option(help="Write a plot, as SVG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the document.")] = None,
    **fields: Any,
) -> None:
    """Measure servers: times to the first token and between tokens, throughput, errors, cost.

    The last line is a JSON document. Exit code 1: a request failed, or not all was measured.
    """
    try:
        load = Load(**fields, body=msgspec.json.decode(body, type=dict[str, Any]))
        targets = _targets(target, pid or [], load, _key(api_key_env))
    except (ValueError, msgspec.DecodeError) as error:
        raise typer.BadParameter(str(error)) from None
    for path in filter(None, (plot, json_file)):
        if not path.absolute().parent.is_dir() or (path is plot and path.suffix != ".svg"):
            raise typer.BadParameter(f"{path}: no such folder, or a plot that is no .svg")
    ended = _measure(targets, load)
    found = report.document(targets, load, ended)
    print_table(report.table(found))
    if plot is not None:
        plot.write_text(report.svg(found), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(json.dumps(found))
    has_failed = any(figures["failed"] for row in targets for figures in row.rounds)
    raise typer.Exit(int(has_failed or ended != "complete"))


# The fields of `Load` are options of the command.
_own = {name: option for name, option in signature(bench).parameters.items() if name != "fields"}
bench.__signature__ = Signature(list(({**signature(Load).parameters, **_own}).values()))  # type: ignore[attr-defined]


def _targets(
    urls: Sequence[str], pids: Sequence[str], load: Load, key: str | None
) -> list[session.Target]:
    found: dict[str, session.Target] = {}
    for name, _, url in (text.partition("=") for text in urls):
        if not name or name in found:
            raise ValueError(f"each target is NAME=URL with a name of its own: {name!r}")
        found[name] = session.Target(name, Address(url, load.route, key))
    for name, _, pid in (text.partition("=") for text in pids):
        if name not in found or cost_of([int(pid)]) is None:
            raise ValueError(f"--pid is NAME=PID with the name of a target: {name!r}")
        found[name].pids.append(int(pid))
    return list(found.values())


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise ValueError(f"the environment has no {variable}")
    return key


def _measure(targets: Sequence[session.Target], load: Load) -> str:
    """How it ended: `complete`, `interrupted` or `warm-up failed`."""
    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    # Drawing takes processor time from what is measured.
    bar = Progress(*columns, console=console, refresh_per_second=2, transient=True)
    bar.disable = not console.is_terminal
    task, ended = bar.add_task("", total=load.rounds * len(targets)), "complete"

    def on_progress(done: float, doing: str) -> None:
        bar.update(task, completed=done, description=doing)

    try:
        with bar:
            uvloop.run(session.run(targets, load, on_progress))
    except KeyboardInterrupt:
        ended = "interrupted"
    except session.WarmUpFailed as error:
        ended = "warm-up failed"
        console.print(f"tenuto bench: {error}")
    for row in targets:
        for figures in row.rounds:
            if figures["failed"]:
                console.print(f"{row.name}: {figures['errors']}, {figures['first_error']!r}")
            if figures["generator_cpu_s"] > BUSY * figures["elapsed_s"] > 0:
                console.print(f"{row.name}: the generator itself was busy; ask less at a time")
    return ended
