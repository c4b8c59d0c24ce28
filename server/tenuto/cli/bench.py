"""`tenuto bench`: how fast is a server, and which of two is faster? Needs no vLLM and no GPU."""

import json
import os
from collections.abc import Sequence
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any

import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typer import BadParameter, Exit, Option

from tenuto.bench import report, session
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cost_of
from tenuto.cli.printing import print_table

# Above this share of a core the generator may be what is measured.
BUSY = 0.7


def bench(
    *,
    target: Annotated[list[str], Option(help="NAME=URL; several take turns: A B A B.")],
    pid: Annotated[list[str] | None, Option(help="NAME=PID: what that process costs.")] = None,
    api_key_env: Annotated[str | None, Option(help="The variable with the key.")] = None,
    body: Annotated[str, Option(help="More fields: '{\"top_k\": 40}'.")] = "{}",
    plot: Annotated[Path | None, Option(help="Write a plot, as SVG.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="Write the document.")] = None,
    **others: Any,
) -> None:
    """Measure servers: times to the first token and between tokens, throughput, errors, cost.

    The last line is a JSON document. Exit code 1: a request failed, or not all was measured.
    """
    for path in filter(None, (plot, json_file)):
        if not path.absolute().parent.is_dir() or (path is plot and path.suffix != ".svg"):
            raise BadParameter(f"{path}: no such folder, or a plot that is no .svg")
    try:
        load = Load(**others, body=msgspec.json.decode(body, type=dict[str, Any]))
        targets = _targets(
            target, pid or [], load, os.environ[api_key_env] if api_key_env else None
        )
    except KeyError as error:
        raise BadParameter(f"there is no {error}") from None
    except (ValueError, msgspec.DecodeError) as error:
        raise BadParameter(str(error)) from None
    ended = _measure(targets, load)
    found = report.document(targets, load, ended)
    print_table(report.table(found))
    if plot is not None:
        plot.write_text(report.svg(found), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(json.dumps(found))
    has_failed = any(figures["failed"] for row in targets for figures in row.rounds)
    raise Exit(int(has_failed or ended != "complete"))


# Each field of `Load` is an option; `body` is one of the command's own, as text.
_options = dict(signature(bench).parameters)
del _options["others"]
_options = dict(signature(Load).parameters) | _options
bench.__signature__ = Signature(list(_options.values()))  # type: ignore[attr-defined]


def _targets(
    urls: Sequence[str], pids: Sequence[str], load: Load, key: str | None
) -> list[session.Target]:
    """Errors: ValueError; KeyError for a name that is not known."""
    pairs = [text.partition("=")[::2] for text in urls]
    found = {name: session.Target(name, Address(url, load.route, key)) for name, url in pairs}
    if len(found) < len(pairs):
        raise ValueError("each target needs a name of its own")
    for name, pid in (text.partition("=")[::2] for text in pids):
        if cost_of([int(pid)]) is None:
            raise ValueError(f"there is no process {pid}")
        found[name].pids.append(int(pid))
    return list(found.values())


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
    except ConnectionError as error:
        ended = "warm-up failed"
        console.print(f"tenuto bench: {error}")
    for row in targets:
        for figures in row.rounds:
            if figures["failed"]:
                console.print(f"{row.name}: {figures['errors']}, {figures['first_error']!r}")
            if figures["generator_cpu_s"] > BUSY * figures["elapsed_s"] > 0:
                console.print(f"{row.name}: the generator itself was busy; ask less at a time")
    return ended
