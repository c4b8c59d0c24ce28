"""This server conforms: the whole kit against real vLLM, as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tenuto.conformance.cases import all_cases
from tests.conformance.test_false_alarms import EQUAL_PAIR
from tests.live.conftest import MODEL, LiveServer, launched, write_registry
from tests.live.test_keys import tenuto
from tests.live.ways import CHAT, COMPLETIONS, Way

pytestmark = pytest.mark.conformance
KEY = "sk-conformance-0123456789"
REJECTING = "Midnight-Miqu-70B-v1.5"
ORIGIN = "https://example.org"
MAX_RUN_S = 120
# Of how many pairs on average one has seen none, one or two equal: with 95 % confidence no more
# than so many (Poisson).
AT_MOST = (3.0, 4.75, 6.3)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with everything that the cases ask for: a key, one with a limit in the state
    directory, an allowed origin, and a model that takes no system prompt."""
    directory = tmp_path_factory.mktemp("complete")
    rows = [{"id": MODEL}, {"id": REJECTING, "system_prompt": "reject"}]
    registry = write_registry(directory / "registry.yaml", rows)
    environment = {
        "TENUTO_API_KEYS": KEY,
        "TENUTO_CORS_ORIGINS": f'["{ORIGIN}"]',
        "TENUTO_STATE_DIR": str(directory / "state"),
    }
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server


def test_every_case_passes(complete: LiveServer, tmp_path: Path) -> None:
    assert_conforms(complete, tmp_path)


def assert_conforms(server: LiveServer, tmp_path: Path) -> None:
    state = server.log.parent / "state"
    environment = {"LIMITED_KEY": tenuto(state, "keys", "create", "--requests-per-minute", "5")}
    arguments = ("--base-url", f"{server.url}/v1", "--limited-api-key-env", "LIMITED_KEY")
    report = conform(environment, tmp_path, "run", *arguments)
    missed = [case for case in report["cases"] if case["outcome"] != "passed"]
    assert [(case["id"], case["outcome"], case["message"]) for case in missed] == []
    assert len(report["cases"]) == len(all_cases()) >= 150


def conform(environment: dict[str, str], directory: Path, *arguments: str) -> dict[str, Any]:
    """Runs `tenuto conform`, which must exit with 0, and returns its report."""
    path = directory / "report.json"
    command = [str(Path(sys.executable).with_name("tenuto")), "conform", *arguments]
    ran = subprocess.run(
        [*command, "--api-key-env", "CONFORM_KEY", "--json", str(path)],
        env={"CONFORM_KEY": KEY, **environment},
        capture_output=True,
        text=True,
        timeout=MAX_RUN_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report: dict[str, Any] = json.loads(path.read_text())
    return report


@pytest.mark.parametrize("way", [CHAT, COMPLETIONS], ids=str)
def test_equal_random_answers_are_as_rare_as_the_kit_counts_on(live: LiveServer, way: Way) -> None:
    """So few equal pairs among so many bound their rate, with 95 % confidence."""
    prompt = "Name eight colours in any order." if way is CHAT else "The"
    texts = [
        text
        for _ in range(12)
        for text in way.ask(live, prompt, temperature=2, n=16, max_tokens=24).texts
    ]
    pairs = list(combinations(texts, 2))
    num_equal = sum(a == b for a, b in pairs)
    assert num_equal < len(AT_MOST)
    assert AT_MOST[num_equal] / len(pairs) < EQUAL_PAIR
