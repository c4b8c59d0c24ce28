"""The units as systemd itself reads them."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, Installed

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(60)]
# Of 10, least exposed first; without hardening it is 9.
MOST_EXPOSED = 4


PROGRAMS = r"/opt/tenuto/\.venv/bin/\w+|/usr/bin/nvidia-modprobe"


@pytest.fixture(params=sorted(DEPLOY.glob("*/*.service")), ids=lambda path: path.name)
def unit(request: pytest.FixtureRequest, tmp_path: Path, installed: Installed) -> Path:
    """One unit, with programs that this machine has."""
    installed("systemd")
    found: Path = request.param
    text, number = re.subn(PROGRAMS, "/bin/true", found.read_text())
    assert number
    path = tmp_path / found.name
    path.write_text(text)
    return path


def test_it_is_understood(unit: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_it_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED * 10}"]
    run = subprocess.run([*command, str(unit)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
