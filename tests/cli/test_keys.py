"""`tenuto keys` in this process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tenuto.cli import app
from tenuto.errors import ConfigError


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_STATE_DIR", str(tmp_path / "state"))


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def created(*arguments: str) -> tuple[str, str]:
    """Its id and its secret."""
    result = keys("create", *arguments)
    assert result.exit_code == 0, result.exception
    return result.stderr.split(":")[0], result.stdout.removesuffix("\n")


def shown(name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(keys("show", name, "--json").stdout)
    return row


def refused(*arguments: str) -> str:
    error = keys(*arguments).exception
    assert isinstance(error, ConfigError)
    return error.message


def test_create_prints_the_secret_alone() -> None:
    result = keys("create")
    key_id = json.loads(keys("list", "--json").stdout)["data"][0]["id"]
    assert result.stdout.startswith("sk-tn-")
    assert len(result.stdout) == 50
    assert result.stderr == f"{key_id}: this secret is not shown again:\n"


def test_create_with_everything() -> None:
    key_id, secret = created(
        *("--note", "for Ada", "--model", "demo", "--model", "Sao10K-*", "--admin"),
        *("--requests-per-minute", "60", "--tokens-per-minute", "1000"),
        *("--parallel-requests", "4", "--tokens-per-month", "1000000"),
        *("--expires", "2999-01-31", "--priority", "-5:5"),
    )
    row = shown(key_id)
    assert row.pop("created_at").startswith("20")
    assert row == {
        "id": key_id,
        "prefix": secret[:12],
        "state": "active",
        "role": "admin",
        "note": "for Ada",
        "expires_at": "2999-01-31T00:00:00Z",
        "revoked_at": None,
        "models": ["demo", "Sao10K-*"],
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "parallel_requests": 4,
        "tokens_per_month": 1000000,
        "first_priority": -5,
        "last_priority": 5,
    }


def test_tables() -> None:
    key_id, secret = created("--note", "[bold]Ada[/]", "--model", "a*", "--model", "b")
    listed = keys("list").stdout.splitlines()
    row = [key_id, secret[:12], "active", "user", "a*", "b", "[bold]Ada[/]"]
    assert listed[0].split()[:3] == ["id", "secret", "state"]
    assert row in [line.split() for line in listed]
    fields = [line.split() for line in keys("show", secret[:12]).stdout.splitlines()]
    assert ["note", "[bold]Ada[/]"] in fields
    assert ["first_priority", "0"] in fields
    assert ["requests_per_minute"] in fields


def test_no_table_and_no_json_has_a_secret() -> None:
    key_id, secret = created()
    for arguments in (["list"], ["list", "--json"], ["show", key_id], ["show", key_id, "--json"]):
        result = keys(*arguments)
        assert secret[:12] in result.stdout
        assert secret[:13] not in result.output


def test_revoke() -> None:
    key_id, _ = created()
    result = keys("revoke", key_id)
    assert (result.stdout, result.stderr) == ("", f"{key_id} is revoked\n")
    assert shown(key_id)["state"] == "revoked"


def test_rotate() -> None:
    key_id, old = created("--note", "kept")
    result = keys("rotate", key_id)
    new = result.stdout.removesuffix("\n")
    assert result.stderr.startswith(key_id)
    assert new != old
    assert (shown(key_id)["prefix"], shown(key_id)["note"]) == (new[:12], "kept")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--requests-per-minute", "0"), "requests_per_minute should be greater than or equal"),
        (("--expires", "soon"), "expires_at should be a duration such as 30d or 12h"),
        (("--expires", "2020-01-01"), "expires_at should be in the future"),
        (("--model", ""), "models[0] "),
        (("--note", "x" * 257), "note "),
        (("--priority", "5"), "--priority 5: should be two numbers, such as -5:5"),
        (("--priority", "5:x"), "--priority 5:x: should be two numbers, such as -5:5"),
        (("--priority", "5:1"), "last_priority should not be lower than first_priority"),
        (("--priority", "0:101"), "last_priority should be less than or equal to 100"),
    ],
)
def test_wishes_that_are_refused(arguments: tuple[str, ...], message: str) -> None:
    assert refused("create", *arguments).startswith(message)
    assert json.loads(keys("list", "--json").stdout)["data"] == []


@pytest.mark.parametrize("command", ["show", "revoke", "rotate"])
def test_keys_that_are_not_there(command: str) -> None:
    assert refused(command, "k-nope") == "there is no key 'k-nope'"


def test_a_revoked_key_is_not_rotated() -> None:
    key_id, _ = created()
    keys("revoke", key_id)
    assert refused("rotate", key_id).startswith(f"{key_id} is revoked")


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert refused("list").startswith("state directory ")


def test_the_other_commands_do_not_import_the_database() -> None:
    code = "import sys, tenuto.cli; assert not {'sqlalchemy', 'alembic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
