"""The unit as systemd itself reads it."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, Installed, replaced

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(60)]
# Of 10, least exposed first; without hardening it is 9.
MOST_EXPOSED = 4


@pytest.fixture
def unit(tmp_path: Path, installed: Installed) -> Path:
    """The unit, with programs that this machine has."""
    installed("systemd")
    text = (DEPLOY / "systemd" / "tenuto.service").read_text()
    programs = ("/opt/tenuto/.venv/bin/tenuto", "/usr/bin/nvidia-modprobe")
    path = tmp_path / "tenuto.service"
    path.write_text(replaced(text, dict.fromkeys(programs, "/bin/true")))
    return path


def test_it_is_understood(unit: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_it_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED * 10}"]
    run = subprocess.run([*command, str(unit)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
