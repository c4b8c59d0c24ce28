"""`tenuto bench`: how fast is a server, and which of two is faster? Needs no vLLM and no GPU."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tenuto.bench import report, session
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cost_of

LOG_COLUMNS, MAX = 160, 1_000_000
# Above this share of a core the generator may be what is measured.
BUSY = 0.7


class Endpoint(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


Count = Annotated[int, typer.Option(min=1, max=MAX)]
Limit = Annotated[float | None, typer.Option(min=0, max=1e9, help="Slower is no goodput.")]
Requests = Annotated[int | None, typer.Option(min=1, max=MAX, help="Of a round.")]
Duration = Annotated[float | None, typer.Option(min=0.01, max=86_400, help="10 s by default.")]
Rate = Annotated[float | None, typer.Option(min=0.001, max=1e5, help="Poisson arrivals a second.")]
Timeout = Annotated[float, typer.Option(min=0.1, max=86_400, help="Of an answer, in seconds.")]
Body = Annotated[str, typer.Option(parser=_object, help="More fields: '{\"top_k\": 40}'.")]
Targets = Annotated[list[str], typer.Option(help="NAME=URL; several take turns: A B A B.")]
Pids = Annotated[list[str] | None, typer.Option(help="NAME=PID: its cost and its children's.")]


def bench(
    context: typer.Context,
    target: Targets,
    model: Annotated[str, typer.Option(help="The model to ask.")],
    pid: Pids = None,
    api_key_env: Annotated[str | None, typer.Option(help="The variable with the key.")] = None,
    endpoint: Endpoint = Endpoint.CHAT,
    stream: bool = True,
    streams: Annotated[int, typer.Option(min=1, max=4096, help="Requests at a time.")] = 32,
    requests: Requests = None,
    duration: Duration = None,
    rate: Rate = None,
    max_tokens: Count = 128,
    prompt_words: Count = 32,
    body: Body = "{}",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Of each target.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, max=MAX, help="Requests that do not count.")] = 8,
    timeout: Timeout = 120,
    seed: int = 0,
    goodput_ttft_ms: Limit = None,
    goodput_itl_ms: Limit = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot, as SVG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the document.")] = None,
) -> None:
    """Measure servers: times to the first token and between tokens, throughput, errors, cost.

    The last line is a JSON document. Exit code 1: a request failed, or not all was measured.
    """
    given = context.params
    if requests is None and duration is None:
        given["duration"] = 10.0
    if not stream and (goodput_ttft_ms, goodput_itl_ms) != (None, None):
        raise typer.BadParameter("goodput by times of tokens needs --stream")
    for path in filter(None, (plot, json_file)):
        if not path.absolute().parent.is_dir() or (path is plot and path.suffix != ".svg"):
            raise typer.BadParameter(f"{path}: no such folder, or a plot that is no .svg")
    load = Load(**{option.name: given[option.name] for option in fields(Load)})
    try:
        targets = _targets(target, pid or [], load, _key(api_key_env))
    except (ValueError, ProcessLookupError) as error:
        raise typer.BadParameter(str(error)) from None
    ended = _measure(targets, load)
    found = report.document(targets, load, ended)
    width = None if os.isatty(1) else LOG_COLUMNS
    Console(width=width, markup=False, highlight=False).print(report.table(found))
    if plot is not None:
        plot.write_text(report.svg(found), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2), encoding="utf-8")
    typer.echo(json.dumps(found))
    has_failed = any(figures["failed"] for row in targets for figures in row.rounds)
    raise typer.Exit(int(has_failed or ended != "complete"))


def _targets(
    urls: Sequence[str], pids: Sequence[str], load: Load, key: str | None
) -> list[session.Target]:
    found: dict[str, session.Target] = {}
    for name, _, url in (text.partition("=") for text in urls):
        if not name or name in found:
            raise ValueError(f"each target is NAME=URL with a name of its own: {name!r}")
        found[name] = session.Target(name, Address(url, load.route, key))
    for name, _, pid in (text.partition("=") for text in pids):
        if name not in found:
            raise ValueError(f"--pid is NAME=PID with the name of a target: {name!r}")
        found[name].pids.append(int(pid))
        cost_of(found[name].pids)
    return list(found.values())


def _key(variable: str | None) -> str | None:
    key = os.environ.get(variable, "").strip() if variable else None
    if variable and not (key and key.isascii() and key.isprintable()):
        raise ValueError(f"{variable} holds no key that a header can hold")
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

    with bar, asyncio.Runner(loop_factory=_new_loop) as runner:
        try:
            runner.run(session.run(targets, load, on_progress))
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


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
