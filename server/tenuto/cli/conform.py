"""`tenuto conform`: does a server behave as the hosted API does? Needs no vLLM and no GPU."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tenuto.conformance import session
from tenuto.conformance.cases import CaseError
from tenuto.conformance.compare import Terms
from tenuto.conformance.facts import SUITS
from tenuto.conformance.quirks import load_expected
from tenuto.conformance.recording import BUNDLED
from tenuto.conformance.report import comparison, terminal
from tenuto.conformance.report.html import to_html
from tenuto.conformance.report.json_report import to_json
from tenuto.conformance.report.junit import to_junit
from tenuto.conformance.run import Cost
from tenuto.conformance.session import Target, Wishes
from tenuto.conformance.transport import MAX_LIMIT
from tenuto.conformance.verdict import Report

CONFORMS, DOES_NOT, KIT_FAILED = 0, 1, 2
LOG_COLUMNS = 160
app = typer.Typer(
    no_args_is_help=True,
    help="Check, record and compare servers that speak the hosted API. "
    "Exit code 0: it conforms, 1: it does not, 2: the kit came to no verdict.",
)

BaseUrl = Annotated[str, typer.Option(help="The server, with or without /v1.")]
KeyVariable = Annotated[
    str | None, typer.Option("--api-key-env", help="The environment variable with the key.")
]
LimitedKeyVariable = Annotated[
    str | None,
    typer.Option(
        "--limited-api-key-env",
        help=f"The variable of a key for at most {MAX_LIMIT} requests a minute, to meet its limit.",
    ),
]
Model = Annotated[str | None, typer.Option(help="The model to ask; the first listed by default.")]
Rejecting = Annotated[
    str | None, typer.Option(help="A model that takes no system prompt, for the documented error.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Globs of case ids, groups, levels or sources: 'chat/*', 'documented'."),
]
Budget = Annotated[
    str | None,
    typer.Option(help="At most REQUESTS, or REQUESTS:TOKENS of prompts and answers together."),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(help="NAME=TEXT: a prompt that is open, short or echoing for this model."),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for each whole answer.")]
Parallel = Annotated[int, typer.Option(min=1, help="Cases at a time.")]
Baseline = Annotated[Path | None, typer.Option(help="YAML of what is expected to differ.")]
JsonFile = Annotated[Path | None, typer.Option(help="Write the report as JSON.")]
JunitFile = Annotated[Path | None, typer.Option(help="Write the report as JUnit XML.")]
HtmlFile = Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")]


@app.command()
def run(
    base_url: BaseUrl,
    api_key_env: KeyVariable = None,
    limited_api_key_env: LimitedKeyVariable = None,
    model: Model = None,
    rejecting_model: Rejecting = None,
    only: Only = None,
    budget: Budget = None,
    baseline: Baseline = None,
    prompt: Prompt = None,
    parallel: Parallel = 4,
    timeout: Timeout = 60,
    json: JsonFile = None,
    junit: JunitFile = None,
    html: HtmlFile = None,
) -> None:
    """Run the cases against a server."""
    with _verdict() as conclude:
        key, limited, prompts = _key(api_key_env), _key(limited_api_key_env), _prompts(prompt)
        target = Target(base_url, key, model, rejecting_model, timeout, prompts, limited)
        with _wishes(only, budget, baseline, parallel) as wishes:
            report = asyncio.run(session.check(target, wishes))
        _write(report, {json: to_json, junit: to_junit, html: to_html})
        _show(report, conclude)


@app.command()
def record(
    directory: Annotated[Path, typer.Argument(help="Where to put it: new, or a recording.")],
    base_url: BaseUrl,
    api_key_env: KeyVariable = None,
    limited_api_key_env: LimitedKeyVariable = None,
    model: Model = None,
    rejecting_model: Rejecting = None,
    only: Only = None,
    budget: Budget = None,
    parallel: Parallel = 4,
    timeout: Timeout = 60,
    origin: Annotated[str, typer.Option(help="What server it is, for readers.")] = "",
) -> None:
    """Keep a server's answers to the cases, without keys and personal data.

    Exit code 0: recorded, whatever the answers were.
    """
    with _verdict() as conclude:
        key, limited = _key(api_key_env), _key(limited_api_key_env)
        target = Target(base_url, key, model, rejecting_model, timeout, limited_key=limited)
        with _wishes(only, budget, None, parallel) as wishes:
            report = asyncio.run(session.record(target, wishes, directory, origin))
        terminal.print_report(_console(), report)
        conclude(True)


@app.command()
def replay(
    directory: Annotated[Path, typer.Argument(help="What `record` made.")],
    only: Only = None,
    baseline: Baseline = None,
    json: JsonFile = None,
    junit: JunitFile = None,
    html: HtmlFile = None,
) -> None:
    """Judge a recording as `run` judges a server, without a network."""
    with _verdict() as conclude:
        with _wishes(only, None, baseline, 1) as wishes:
            report = asyncio.run(session.replay(directory, wishes))
        _write(report, {json: to_json, junit: to_junit, html: to_html})
        _show(report, conclude)


@app.command()
def compare(
    a: Annotated[str, typer.Option(help="What B is held against: URL, recording or hosted-stack.")],
    b: Annotated[str, typer.Option(help="URL or recording of the server to judge.")],
    a_key_env: Annotated[str | None, typer.Option(help="As --api-key-env, of A.")] = None,
    b_key_env: Annotated[str | None, typer.Option(help="As --api-key-env, of B.")] = None,
    a_model: Annotated[str | None, typer.Option(help="The model to ask of A.")] = None,
    b_model: Annotated[str | None, typer.Option(help="The model to ask of B.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Globs of cases, or of the recording's requests.")
    ] = None,
    same_checkpoint: Annotated[
        bool, typer.Option("--same-checkpoint", help="Greedy texts and counts must be equal.")
    ] = False,
    baseline: Baseline = None,
    parallel: Parallel = 4,
    timeout: Timeout = 60,
    show_known: Annotated[bool, typer.Option("--all", help="Show known differences, too.")] = False,
    json: JsonFile = None,
) -> None:
    """Ask two servers the same and show what differs, and which of them breaks what.

    Exit code 1: B breaks a requirement, or differs in a way that nobody knows of.
    """
    with _verdict() as conclude:
        sides = (_side(a, a_key_env, a_model, timeout), _side(b, b_key_env, b_model, timeout))
        expected = load_expected(baseline) if baseline else ()
        terms = Terms(same_checkpoint, expected, parallel)
        found = asyncio.run(session.compare(*sides, only or (), terms))
        if json is not None:
            json.write_text(comparison.to_json(found), encoding="utf-8")
        comparison.print_comparison(_console(), found, show_known)
        conclude(found.conforms)


@app.command()
def cases(only: Only = None) -> None:
    """List the cases: id, level, and what each requires."""
    with _verdict() as conclude:
        for case in session.chosen(only or ()):
            typer.echo(f"{case.id}\t{case.level}\t{case.requires}")
        conclude(True)


@contextmanager
def _verdict() -> Iterator[Callable[[bool], None]]:
    """Turns what is concluded, and every fault of the kit itself, into the exit code."""
    code = KIT_FAILED

    def conclude(conforms: bool) -> None:
        nonlocal code
        code = CONFORMS if conforms else DOES_NOT

    try:
        yield conclude
    except CaseError as error:
        print(f"tenuto conform: {error}", file=sys.stderr)
    except Exception as error:
        print(f"tenuto conform: the kit itself failed: {error!r}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def _wishes(
    only: Sequence[str] | None, budget: str | None, baseline: Path | None, parallel: int
) -> Iterator[Wishes]:
    """With the cost told in advance, and a progress bar while it runs."""
    console, cases = _console(), session.chosen(only or ())
    with terminal.progress(console, len(cases)) as on_result:
        yield Wishes(
            cases=cases,
            budget=_budget(budget),
            baseline=baseline,
            parallel=parallel,
            on_cost=lambda cost, num_cases: terminal.print_cost(console, cost, num_cases),
            on_result=on_result,
        )


def _console() -> Console:
    """In a log, lines need not fit a screen."""
    return Console(width=None if sys.stdout.isatty() else LOG_COLUMNS)


def _show(report: Report, conclude: Callable[[bool], None]) -> None:
    """Where a must could not be judged, and nothing failed, there is no verdict."""
    terminal.print_report(_console(), report)
    if report.breaks or report.conforms:
        conclude(report.conforms)


def _prompts(given: Sequence[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or ()]
    for name, _, text in pairs:
        if name not in SUITS or not text:
            raise CaseError(f"--prompt is NAME=TEXT, the name one of {', '.join(SUITS)}: {name!r}")
    return {name: text for name, _, text in pairs}


def _side(where: str, variable: str | None, model: str | None, timeout: float) -> Target | Path:
    if where.startswith(("http://", "https://")):
        return Target(where, _key(variable), model, timeout_s=timeout)
    return BUNDLED / where if (BUNDLED / where).is_dir() else Path(where)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise CaseError(f"the environment has no {variable}")
    if not (key.isascii() and key.isprintable()):
        raise CaseError(f"{variable} holds characters that no header can hold")
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
