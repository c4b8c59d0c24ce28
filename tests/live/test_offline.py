"""At run time the server needs no network: it answers where there is none."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.live.conftest import ROOT
from tests.live.knowledge import ANSWERS, HELLO
from tests.live.offline import LATER

pytestmark = pytest.mark.live
NAMESPACE = ("unshare", "--map-root-user", "--net")
NOT_PERMITTED = (
    "this test needs a network namespace, and `{command}` failed: {reason}. Allow user namespaces "
    "(on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; in a container: "
    "--security-opt seccomp=unconfined), or run it as root."
)


def require_namespaces() -> None:
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
    reason = tried.stderr.strip()
    command = " ".join([*NAMESPACE, "true"])
    assert tried.returncode == 0, NOT_PERMITTED.format(command=command, reason=reason)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a client was told inside the namespace; the caches of this host's user are not there."""
    require_namespaces()
    directory = tmp_path_factory.mktemp("offline")
    home = {"HOME": str(directory), "HF_HOME": str(directory), "VLLM_CACHE_ROOT": str(directory)}
    run = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.live.offline", str(directory)],
        env={**os.environ, **home},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    answers: dict[str, Any] = json.loads(run.stdout)
    assert answers["offline"]
    return answers


@pytest.mark.parametrize(("name", "model"), [("chat", "tenuto-demo"), ("later", LATER)])
def test_models_answer(told: dict[str, Any], name: str, model: str) -> None:
    answer = told[name]
    assert answer["model"] == model
    assert answer["choices"][0]["message"]["content"] == ANSWERS[HELLO]


def test_tokens_are_counted(told: dict[str, Any]) -> None:
    assert told["counter"]["total_tokens"] == told["later"]["usage"]["prompt_tokens"]


def test_nothing_was_looked_for_elsewhere(told: dict[str, Any]) -> None:
    assert told["documentation"] == 200
    for complaint in ("unreachable", "Name or service", "name resolution", "Max retries"):
        assert complaint not in told["log"]
