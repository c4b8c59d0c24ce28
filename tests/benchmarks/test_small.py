"""The whole of scripts/bench but LiteLLM and the Rust frontend, with few requests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.rows import LITELLM, ROWS, RUST

pytestmark = [pytest.mark.bench, pytest.mark.timeout(290)]
ROOT = Path(__file__).parents[2]
ALLOWED_S = 280


def small_run() -> tuple[int, str]:
    """Its exit code and its output. Ended in time, it ends its servers itself."""
    command = [sys.executable, "-m", "scripts.benchmarks", "--small"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=ALLOWED_S)
        finally:
            process.terminate()
    return process.returncode, output


def test_every_row_has_its_figure() -> None:
    code, output = small_run()
    *table, last = output.splitlines()
    found = json.loads(last)
    left_out = {row.name for row in ROWS if {LITELLM, RUST} & set(row.subjects)}
    wanted = [row.name for row in ROWS if row.name not in left_out]
    assert [row["name"] for row in found["rows"]] == wanted
    assert [len(row["values"]) for row in found["rows"]] == [1] * len(wanted)
    assert all(any(line.startswith(name) for line in table) for name in wanted)
    assert {round_["streams"]["tenuto"]["failed"] for round_ in found["rounds"]} == {0}
    assert code == 0
