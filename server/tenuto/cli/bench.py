"""`tenuto bench`: how fast is a server, and which of two is faster? Needs no vLLM and no GPU."""

import os
from asyncio import Runner
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from typer import BadParameter, Exit, Option, echo
from uvicorn.loops.auto import auto_loop_factory

from tenuto.bench import report
from tenuto.bench.client import Address
from tenuto.bench.load import Load
from tenuto.bench.processes import cost_of
from tenuto.bench.session import Target, document, run
from tenuto.cli.printing import print_table


def bench(
    *,
    target: Annotated[list[str], Option(help="NAME=URL; several take turns: A B A B.")],
    pid: Annotated[list[str] | None, Option(help="NAME=PID: what that process costs.")] = None,
    api_key_env: Annotated[str | None, Option(help="The variable with the key.")] = None,
    body: Annotated[str, Option(help="More fields: '{\"top_k\": 40}'.")] = "{}",
    plot: Annotated[Path | None, Option(help="Write a plot, as SVG.")] = None,
    json: Annotated[Path | None, Option(help="Write the document.")] = None,
    **asked: Any,
) -> None:
    """Measure servers: times to the first token and between tokens, throughput, errors, cost. The
    last line is a JSON document. Exit code 1: a request failed, or not all was measured."""
    for path in filter(None, (plot, json)):
        if not path.absolute().parent.is_dir() or (path is plot and path.suffix != ".svg"):
            raise BadParameter(f"{path}: no such folder, or a plot that is no .svg")
    try:
        asked["duration"] = asked["duration"] or (None if asked["requests"] else 10.0)
        load = Load(**asked, body=msgspec.json.decode(body, type=dict[str, Any]))
        if not load.stream and (load.goodput_ttft_ms, load.goodput_itl_ms) != (None, None):
            raise ValueError("goodput by times of tokens needs --stream")
        key = os.environ[api_key_env].strip() if api_key_env else None
        targets = _targets(target, pid or [], load, key)
    except KeyError as error:
        raise BadParameter(f"there is no {error}") from None
    except (ValueError, msgspec.DecodeError) as error:
        raise BadParameter(str(error)) from None
    ended = _measure(targets, load)
    found = document(targets, load, ended)
    print_table(report.table(found))
    if plot is not None:
        plot.write_text(report.svg(found), encoding="utf-8")
    line = msgspec.json.encode(found)
    if json is not None:
        json.write_bytes(line)
    echo(line)
    failed = [(row.name, figures) for row in targets for figures in row.rounds if figures["failed"]]
    for name, figures in failed:
        echo(f"{name}: {figures['errors']}, {figures['first_error']!r}", err=True)
    raise Exit(int(ended != "complete" or bool(failed)))


# Each field of `Load` is an option as well; `body` is one of the command's own, being text here.
_options = {**signature(Load).parameters, **signature(bench).parameters}
bench.__signature__ = Signature([_options[name] for name in _options if name != "asked"])  # type: ignore[attr-defined]


def _targets(urls: list[str], pids: list[str], load: Load, key: str | None) -> list[Target]:
    """Errors: ValueError; KeyError for a name that is not known."""
    pairs = [text.partition("=")[::2] for text in urls]
    found = {name: Target(name, Address(url, load.route, key)) for name, url in pairs}
    if len(found) < len(pairs):
        raise ValueError("each target needs a name of its own")
    for name, pid in (text.partition("=")[::2] for text in pids):
        if cost_of([int(pid)]) is None:
            raise ValueError(f"there is no process {pid}")
        found[name].pids.append(int(pid))
    return list(found.values())


def _measure(targets: list[Target], load: Load) -> str:
    """How it ended: `complete`, `interrupted` or `warm-up failed`."""
    err = Console(stderr=True)
    # Drawing takes processor time from what is measured.
    bar = Progress(console=err, refresh_per_second=2, transient=True, disable=not err.is_terminal)
    task = bar.add_task("", total=load.rounds * len(targets))

    def on_progress(done: float, doing: str) -> None:
        bar.update(task, completed=done, description=escape(doing))

    try:
        with bar, Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(run(targets, load, on_progress))
    except KeyboardInterrupt:
        return "interrupted"
    except ConnectionError as error:
        echo(f"tenuto bench: {error}", err=True)
        return "warm-up failed"
    return "complete"
