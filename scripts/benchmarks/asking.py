"""A load asked of one address, and a measurement that is a command of its own."""

import argparse
import json
from collections.abc import Callable

import uvloop

from tenuto.bench.client import Address, Answer
from tenuto.bench.load import Load, ask_all


def answers_of(address: Address, load: Load, turn: int = 0) -> list[Answer]:
    """Also those that failed, with why."""
    answers: list[Answer] = []
    uvloop.run(ask_all(address, load, turn, answers.append))
    return answers


def as_command(
    measured: Callable[[float], dict[str, float]], about: str | None, seconds: float = 20
) -> None:
    """Prints as JSON what was found in about `--seconds`."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=seconds)
    print(json.dumps(measured(parser.parse_args().seconds)))
