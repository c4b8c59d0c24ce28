"""Measures this server beside its peers, and judges what it found. Run it through scripts/bench.

The last line of the output is a JSON document. Exit code 0: all was measured, whatever came of it.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scripts.benchmarks import report
from scripts.benchmarks.alone import alone
from scripts.benchmarks.measure import OnStep, Subject, num_steps, of_loads, of_modules, warmed_up
from scripts.benchmarks.one_layer import make_one_layer
from scripts.benchmarks.peers import ROOT, RUST_BINARY, Peers
from scripts.benchmarks.rows import LITELLM, ROWS, RUST, Round
from scripts.benchmarks.versions import versions

PAGE = ROOT / "docs" / "benchmarks.md"
COLUMNS = 140


def main() -> int:
    given, command = _options(), " ".join(["scripts/bench", *sys.argv[1:]])
    # Whoever ends this process ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with _bar() as bar:
        rounds = _rounds(1 if given.small else given.rounds, given.small, bar)
    known = versions({subject for _, subject in rounds[0]})
    rows = [row for row in ROWS if not (given.small and {LITELLM, RUST} & set(row.subjects))]
    lines = report.lines(rows, rounds)
    if given.write:
        part = report.markdown(lines, rounds, known, command)
        PAGE.write_text(report.written(PAGE.read_text(), part))
    Console(width=None if sys.stdout.isatty() else COLUMNS).print(report.table(lines))
    print(report.conditions(rounds))
    print(report.document(lines, rounds, known, command))
    return int(not all(line["values"] for line in lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    small = "one round of few requests, without LiteLLM and the Rust frontend"
    parser.add_argument("--small", action="store_true", help=small)
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/benchmarks.md"
    )
    given = parser.parse_args()
    if given.rounds < 1 or (given.small and given.write):
        parser.error("at least one round, and no small one for the page")
    return given


def _bar() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # Drawing takes processor time from what is measured.
    return Progress(
        *columns,
        console=console,
        refresh_per_second=2,
        transient=True,
        disable=not console.is_terminal,
    )


def _rounds(number: int, is_small: bool, bar: Progress) -> list[Round]:
    task = bar.add_task("", total=None)

    def on_step(doing: str) -> None:
        bar.update(task, description=doing, advance=1)

    with TemporaryDirectory() as folder, _subjects(Path(folder), is_small, on_step) as subjects:
        bar.update(task, total=num_steps(subjects, number), completed=0)
        if not is_small:
            warmed_up(subjects, on_step)
        return [
            {**of_loads(subjects, turn, is_small, on_step), **of_modules(is_small, on_step)}
            for turn in range(number)
        ]


@contextmanager
def _subjects(folder: Path, is_small: bool, on_step: OnStep) -> Iterator[Sequence[Subject]]:
    checkpoint = make_one_layer(folder / "checkpoint")
    on_step("starting the servers")
    with Peers(folder, checkpoint) as peers, ThreadPoolExecutor() as pool:
        # Each takes one core for most of its start.
        starting = [pool.submit(peers.tenuto), pool.submit(peers.vllm)]
        with alone(folder, checkpoint) as base:
            tenuto, vllm = (start.result() for start in starting)
            subjects: list[Subject] = [tenuto, vllm, base]
            if not is_small:
                subjects.append(peers.litellm(vllm))
            if not is_small and RUST_BINARY.is_file():
                subjects.append(peers.rust())
            yield subjects


if __name__ == "__main__":
    sys.exit(main())
