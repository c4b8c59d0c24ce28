"""`tenuto usage` in this process."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from tenuto.access.schema import keys
from tenuto.access.usage import DAY_S, write
from tenuto.cli import app
from tenuto.errors import ConfigError
from tests.access.test_usage_queries import a_key
from tests.access.usages import JANUARY_31, a_row, opened


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENUTO_STATE_DIR", str(tmp_path))
    rows = [
        a_row(key_id="k1", prompt_tokens=1_500, completion_tokens=20, duration_s=0.1),
        a_row(key_id="k1", prompt_tokens=1, status=500, duration_s=0.2),
        a_row(key_id="k2", at=JANUARY_31 + DAY_S, model="m2"),
        a_row(key_id="", at=JANUARY_31 + 2 * DAY_S),
    ]
    with opened(tmp_path) as engine, engine.begin() as connection:
        write(connection, rows)
        connection.execute(insert(keys), [a_key("k1", "Ada [phone]")])
    return tmp_path


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["usage", *arguments])


def as_json(*arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(asked(*arguments, "--json").stdout)
    return rows


def test_by_day_when_nothing_is_said() -> None:
    lines = [line.split() for line in asked().stdout.splitlines()]
    assert lines[0][:3] == ["day", "requests", "errors"]
    assert lines[1] == ["2026-01-31", "2", "1", "1,501", "0", "20", "0", "0.3"]
    assert [line[0] for line in lines[2:]] == ["2026-02-01", "2026-02-02"]


def test_keys_with_their_notes() -> None:
    lines = asked("--by", "key", "--by", "model").stdout.splitlines()
    assert lines[1].split()[:4] == ["(no", "key)", "m1", "1"]
    assert lines[2].split()[:5] == ["k1", "Ada", "[phone]", "m1", "2"]
    assert lines[3].split()[:3] == ["k2", "m2", "1"]


def test_days_are_included() -> None:
    rows = as_json("--since", "2026-01-31", "--until", "2026-02-01")
    assert [row["day"] for row in rows] == ["2026-01-31", "2026-02-01"]
    assert rows[0]["duration_s"] == 0.3


def test_csv() -> None:
    text = asked("--by", "key", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["key"], row["note"], row["requests"]) for row in rows] == [
        ("", "", "1"),
        ("k1", "Ada [phone]", "2"),
        ("k2", "", "1"),
    ]


@pytest.mark.parametrize("arguments", [("--by", "hour"), ("--since", "yesterday")])
def test_wrong_arguments(arguments: tuple[str, ...]) -> None:
    assert asked(*arguments).exit_code == 2


def test_one_format_at_a_time() -> None:
    assert isinstance(asked("--csv", "--json").exception, ConfigError)


def test_other_commands_do_not_load_sqlalchemy() -> None:
    check = "import sys, tenuto.cli; assert not {'sqlalchemy', 'alembic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
