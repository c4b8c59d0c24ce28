"""Two `tenuto serve` as their owner runs them, with the two settings in the environment."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.benchmarks.processes import descendants
from tests.databases.services import PASSWORD, Postgres
from tests.live.conftest import MODEL, TENUTO, LiveServer, launched, write_registry

pytestmark = pytest.mark.databases
Environment = dict[str, str]


@pytest.fixture
def environment(postgres: Postgres, redis_url: str) -> Environment:
    return {"TENUTO_DATABASE_URL": postgres.fresh(), "TENUTO_REDIS_URL": redis_url}


@pytest.fixture
def pair(environment: Environment, tmp_path: Path) -> Iterator[tuple[LiveServer, LiveServer]]:
    """Nobody asks for the model, so that no engine starts."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    registry = write_registry(tmp_path / "registry.yaml", [{"id": MODEL, "load": "on_demand"}])
    arguments = ("--registry", str(registry))
    with (
        launched(tmp_path / "one", *arguments, environment=environment) as one,
        launched(tmp_path / "other", *arguments, environment=environment) as other,
    ):
        yield one, other


def tenuto(environment: Environment, *arguments: str) -> str:
    command = [*TENUTO, *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()


def ask(server: LiveServer, secret: str) -> httpx.Response:
    """What is refused after the limits: there is no such model."""
    body = {"model": "nobody", "prompt": "Hi"}
    headers = {"authorization": f"Bearer {secret}"}
    return server.client.post("/v1/completions", json=body, headers=headers)


def test_what_an_owner_does_of_two_servers(
    pair: tuple[LiveServer, LiveServer], environment: Environment
) -> None:
    one, other = pair
    for server in pair:
        for pid in descendants(server.process.pid):
            assert b"p%254" not in Path(f"/proc/{pid}/environ").read_bytes()
    # It lands on each server by itself.
    secret = tenuto(environment, "keys", "create", "--requests-per-minute", "10")
    began = time.monotonic()
    while {ask(server, secret).status_code for server in pair} == {401}:
        assert time.monotonic() - began < 1
        time.sleep(0.1)
    # Twice as many as allowed, where both count together; on a busy machine they may not always.
    asked = [ask(pair[turn % 2], secret) for turn in range(20)]
    assert {answer.status_code for answer in asked} == {400, 429}
    assert asked[-1].json()["error"]["message"] == "This key may make 10 requests a minute."
    (key,) = json.loads(tenuto(environment, "keys", "list", "--json"))["data"]
    other.process.kill()
    other.process.wait()
    assert ask(one, secret).status_code == 429
    tenuto(environment, "keys", "revoke", key["id"])
    time.sleep(1)
    assert ask(one, secret).status_code == 401
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(30) == 0
    (usage,) = json.loads(tenuto(environment, "usage", "--by", "key", "--json"))
    assert usage["key"] == key["id"]
    assert usage["requests"] > 10
    logs = one.log.read_text() + other.log.read_text()
    assert PASSWORD not in logs
    assert not list(one.log.parent.rglob("state.db"))


def test_serve_says_what_it_cannot_reach(environment: Environment, postgres: Postgres) -> None:
    for name, value, complaint in (
        ("TENUTO_DATABASE_URL", "mysql://ada:p%254@h/d", "setting database_url: should be"),
        ("TENUTO_DATABASE_URL", postgres.url("nowhere"), 'database "nowhere" does not exist'),
        ("TENUTO_REDIS_URL", "http://:p%254@h", "setting redis_url: should be"),
    ):
        command = [*TENUTO, "serve", "--port", "0"]
        ended = subprocess.run(
            command,
            env={**os.environ, **environment, name: value},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 2, ended.stderr
        assert complaint in ended.stderr
        assert PASSWORD not in ended.stderr
