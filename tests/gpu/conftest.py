"""What the tests here found, as one JSON document: the last line of the output."""

import json
import subprocess
from typing import Any

import pytest

from scripts.benchmarks.versions import versions
from tenuto.models.devices import installed_devices

SCHEMA_VERSION = 1
DEVICES = installed_devices()
FOUND = pytest.StashKey[dict[str, Any]]()
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, Any]:
    """Where a test puts its figures, before it judges them."""
    return pytestconfig.stash.setdefault(FOUND, {})


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if FOUND in session.config.stash:
        session.config.stash[FOUND]["exit_status"] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own last line."""
    found = config.stash.get(FOUND, None)
    if found is not None:
        about = {"gpu_check": SCHEMA_VERSION, "dry_run": not DEVICES, "gpus": _gpus()}
        print(json.dumps(about | {"versions": versions(set())} | found))


def _gpus() -> list[str]:
    if not DEVICES:
        return []
    run = subprocess.run(QUERY, capture_output=True, check=True, text=True)
    return run.stdout.splitlines()
