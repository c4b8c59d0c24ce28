"""`tenuto conform`: does a server behave as the hosted API does? Needs no vLLM and no GPU."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tenuto.conformance.cases import CaseError, all_cases
from tenuto.conformance.report import terminal
from tenuto.conformance.report.html import to_html
from tenuto.conformance.report.json_report import to_json
from tenuto.conformance.report.junit import to_junit
from tenuto.conformance.run import Cost
from tenuto.conformance.session import Target, Wishes, check, chosen
from tenuto.conformance.verdict import Report

CONFORMS, DOES_NOT, KIT_FAILED = 0, 1, 2
app = typer.Typer(
    no_args_is_help=True, help="Check, record and compare servers that speak the hosted API."
)

BaseUrl = Annotated[str, typer.Option(help="The server, with or without /v1.")]
KeyVariable = Annotated[
    str | None, typer.Option("--api-key-env", help="The environment variable with the key.")
]
Model = Annotated[str | None, typer.Option(help="The model to ask; the first listed by default.")]
Rejecting = Annotated[
    str | None, typer.Option(help="A model that takes no system prompt, for the documented error.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Globs of case ids, groups, levels or sources: 'chat/*', 'documented'."),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for each whole answer.")]
Parallel = Annotated[int, typer.Option(min=1, help="Cases at a time.")]


@app.command("run")
def run(
    base_url: BaseUrl,
    api_key_env: KeyVariable = None,
    model: Model = None,
    rejecting_model: Rejecting = None,
    only: Only = None,
    budget: Annotated[
        str | None,
        typer.Option(help="At most REQUESTS, or REQUESTS:TOKENS, of prompt and answer together."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="YAML of the failures that are expected: 'id: why'.")
    ] = None,
    parallel: Parallel = 4,
    timeout: Timeout = 60,
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the report as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
) -> None:
    """Run the cases against a server. Exit code 0: it conforms, 1: it does not, 2: no verdict."""
    with _verdict() as say:
        console = Console()
        target = Target(base_url, _key(api_key_env), model, rejecting_model, timeout)
        with terminal.progress(console, len(chosen(only or ()))) as on_result:
            report = asyncio.run(
                check(
                    target,
                    Wishes(
                        only=only or (),
                        budget=_budget(budget),
                        baseline=baseline,
                        parallel=parallel,
                        on_cost=lambda cost, n: terminal.print_cost(console, cost, n),
                        on_result=on_result,
                    ),
                )
            )
        _write(report, {json: to_json, junit: to_junit, html: to_html})
        terminal.print_report(console, report)
        say(report.conforms)


@app.command("cases")
def cases(only: Only = None) -> None:
    """List the cases: id, level, and what each requires."""
    with _verdict() as say:
        for case in chosen(only or ()):
            typer.echo(f"{case.id}\t{case.level}\t{case.requires}")
        say(bool(all_cases()))


@contextmanager
def _verdict() -> Iterator[Callable[[bool], None]]:
    """Turns what is said, and every fault of the kit itself, into the exit code."""
    said = [False]
    try:
        yield lambda conforms: said.__setitem__(0, conforms)
    except CaseError as error:
        print(f"tenuto conform: {error}", file=sys.stderr)
        raise typer.Exit(KIT_FAILED) from None
    except Exception as error:
        print(f"tenuto conform: the kit itself failed: {error!r}", file=sys.stderr)
        raise typer.Exit(KIT_FAILED) from error
    raise typer.Exit(CONFORMS if said[0] else DOES_NOT)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise CaseError(f"the environment has no {variable}")
    return key


def _budget(text: str | None) -> Cost | None:
    if text is None:
        return None
    requests, _, tokens = text.partition(":")
    try:
        return Cost(int(requests), int(tokens) if tokens else sys.maxsize)
    except ValueError:
        raise CaseError(f"--budget is REQUESTS or REQUESTS:TOKENS, not {text!r}") from None


def _write(report: Report, forms: dict[Path | None, Callable[[Report], str]]) -> None:
    for path, form in forms.items():
        if path is not None:
            path.write_text(form(report), encoding="utf-8")
