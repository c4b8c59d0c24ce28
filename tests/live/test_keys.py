"""Stored keys, limits and usage of a real server: isolation, revocation, and no secret anywhere."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.benchmarks.processes import descendants
from tests.live.conftest import MODEL, LiveServer, launched, write_registry
from tests.live.test_cancellation import wait_until

pytestmark = pytest.mark.live
FIXED = "sk-fixed-" + "f" * 32
WRONG = "sk-wrong-" + "w" * 32
PROMPT = "A prompt that only this test has, and which is longer than some blocks of tokens: " * 24


def tenuto(state: Path, *arguments: str) -> str:
    command: list[str | Path] = [Path(sys.executable).with_name("tenuto"), *arguments]
    environment = {**os.environ, "TENUTO_STATE_DIR": str(state)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return str(ended.stdout).strip()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def secrets(state: Path) -> dict[str, str]:
    """Of keys that were made before the server began."""
    return {
        "one": tenuto(state, "keys", "create", "--note", "one"),
        "other": tenuto(state, "keys", "create", "--note", "other"),
        "few": tenuto(state, "keys", "create", "--requests-per-minute", "2"),
        "owner": tenuto(state, "keys", "create", "--admin"),
    }


@pytest.fixture(scope="module")
def keyed(
    tmp_path_factory: pytest.TempPathFactory, state: Path, secrets: dict[str, str]
) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("keyed")
    registry = write_registry(directory / "registry.yaml", [{"id": MODEL}])
    environment = {
        "TENUTO_STATE_DIR": str(state),
        "TENUTO_API_KEYS": FIXED,
        "TENUTO_SHARE_PREFIX_CACHE": "false",
        "TENUTO_LOG_LEVEL": "debug",
    }
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server


def asked(server: LiveServer, secret: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, **fields}
    headers = {"authorization": f"Bearer {secret}"}
    return server.client.post("/v1/completions", json=body, headers=headers)


def cached_tokens(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def test_one_keys_prompt_is_no_cache_hit_for_another(
    keyed: LiveServer, secrets: dict[str, str]
) -> None:
    assert cached_tokens(asked(keyed, secrets["one"])) == 0
    assert cached_tokens(asked(keyed, secrets["one"])) > 0
    assert cached_tokens(asked(keyed, secrets["other"])) == 0
    assert cached_tokens(asked(keyed, secrets["other"])) > 0


def test_a_key_with_a_limit(keyed: LiveServer, secrets: dict[str, str]) -> None:
    answers = [asked(keyed, secrets["few"]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0", "0"]
    assert 0 < int(answers[2].headers["retry-after"]) <= 60


def test_a_key_that_another_process_revokes(keyed: LiveServer, state: Path) -> None:
    secret = tenuto(state, "keys", "create")
    wait_until(lambda: asked(keyed, secret).status_code == 200)
    (row,) = [row for row in _listed(state) if secret.startswith(row["prefix"])]
    tenuto(state, "keys", "revoke", row["id"])
    wait_until(lambda: asked(keyed, secret).status_code == 401)


def _listed(state: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(tenuto(state, "keys", "list", "--json"))["data"]
    return rows


def test_no_secret_is_written_anywhere(
    keyed: LiveServer, secrets: dict[str, str], state: Path
) -> None:
    """Neither valid nor wrong ones: not in the log, the database, or what processes show."""
    asked(keyed, FIXED)
    asked(keyed, WRONG)
    asked(keyed, secrets["one"], temperature=99)
    keyed.client.get(f"/v1/models?key={WRONG}", headers={"authorization": WRONG})
    keyed.client.get("/admin/keys", headers={"authorization": f"Bearer {secrets['owner']}"})
    pids = [keyed.process.pid, *descendants(keyed.process.pid)]
    shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    # The server's own environment is what its starter gave it; engines get none of it.
    shown += [Path(f"/proc/{pid}/environ").read_bytes() for pid in keyed.engine_pids()]
    shown += [path.read_bytes() for path in state.iterdir() if path.is_file()]
    shown.append(keyed.log.read_bytes())
    for secret in (*secrets.values(), FIXED, WRONG):
        assert [secret.encode() in text for text in shown] == [False] * len(shown)


def test_usage_is_whole_after_the_server_has_ended(
    keyed: LiveServer, secrets: dict[str, str], state: Path
) -> None:
    """The last test of this server: it ends it."""
    before = _requests(state)
    for _ in range(20):
        assert asked(keyed, secrets["one"]).status_code == 200
    keyed.process.send_signal(signal.SIGTERM)
    assert keyed.process.wait(30) == 0
    assert _requests(state) - before >= 20
    rows = json.loads(tenuto(state, "usage", "--by", "key", "--json"))
    assert {row.get("note") for row in rows} >= {"one", "other"}


def _requests(state: Path) -> int:
    rows = json.loads(tenuto(state, "usage", "--json"))
    return sum(int(row["requests"]) for row in rows)
