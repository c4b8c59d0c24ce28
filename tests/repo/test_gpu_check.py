"""`scripts/gpu_check` where there is no GPU."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no NVIDIA GPU here"),
        (["--faster"], "usage: scripts/gpu_check"),
        (["--dry-run", "--python", "no/such/python"], "wants an interpreter"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], said: str) -> None:
    # As on a machine whose driver finds none.
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert said in run.stderr
    assert not run.stdout
