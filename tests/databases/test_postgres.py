"""The state database in a real Postgres: opened by several at once, refused, and cut off."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from tenuto.access.database import open_database
from tenuto.access.new_key import NewKey
from tenuto.access.schema import metadata
from tenuto.access.usage import DAY_S, Recorder
from tenuto.errors import ConfigError, Unavailable
from tests.access.stores import opened
from tests.access.test_database import NEXT
from tests.access.test_database import migrations as migrations
from tests.access.usages import a_row, record, stored
from tests.databases.services import PASSWORD, Postgres

pytestmark = pytest.mark.databases
OPEN = """
import logging, sys
from pathlib import Path
from tenuto.access.database import open_database
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(name)s: %(message)s")
input()
open_database(Path("nowhere"), sys.argv[1]).dispose()
"""


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh()


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_database(Path("nowhere"), url)
    assert PASSWORD not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_processes_that_open_at_once_migrate_once(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, url]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    said = b"".join(process.communicate(timeout=60)[0] for process in processes).decode()
    ours = [line for line in said.splitlines() if line.startswith("tenuto.")]
    assert ours == ["tenuto.access.database: state database: version 0001, was new"], said
    assert [process.returncode for process in processes] == [0] * 4
    with opened(tmp_path, url) as store:
        assert store.change_number() == 0
    assert not (tmp_path / "nowhere").exists()


def test_migrations_make_what_the_tables_say(url: str, tmp_path: Path) -> None:
    with opened(tmp_path, url) as store, store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_next_version_and_half_of_one(url: str, tmp_path: Path, migrations: Path) -> None:
    with opened(tmp_path, url) as store:
        created = store.create(NewKey())[0]
    broken = NEXT + '    op.execute("INSERT INTO nowhere VALUES (1)")\n'
    (migrations / "versions" / "v0002.py").write_text(broken)
    assert 'relation "nowhere" does not exist' in refusal(url)
    (migrations / "versions" / "v0002.py").write_text(NEXT)
    with opened(tmp_path, url) as store:
        assert store.rows() == [created]
        with store.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM more")).scalar() == 1
    assert not list(tmp_path.glob("*.db"))


def test_a_database_of_a_newer_version(url: str, tmp_path: Path) -> None:
    with opened(tmp_path, url) as store, store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    name = url.rpartition("/")[2]
    assert refusal(url) == f"database {name} on 127.0.0.1: a newer version wrote it"


def test_one_that_cannot_be_reached(postgres: Postgres) -> None:
    with postgres.stopped():
        assert "Connection refused" in refusal(postgres.url("state"))


@pytest.mark.parametrize(
    ("database", "password", "complaint"),
    [
        ("nowhere", "p%254", 'database "nowhere" does not exist'),
        ("postgres", "wrong", "password authentication failed"),
        ("postgres?sslmode=require", "p%254", "server does not support SSL"),
        ("postgres?colour=red", "p%254", 'invalid connection option "colour"'),
    ],
)
def test_one_that_lets_nobody_in(
    postgres: Postgres, database: str, password: str, complaint: str
) -> None:
    assert complaint in refusal(postgres.url(database, password))


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ada:p%254@127.0.0.1/state",
        "postgresql+asyncpg://ada:p%254@127.0.0.1/state",
        "ada:p%254@127.0.0.1",
        "postgresql://ada:p%254@127.0.0.1:many/state",
        "postgresql://ada:@p%254@127.0.0.1/state",
        "",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    assert refusal(url).startswith("setting database_url: should be postgresql://")


def test_a_shorter_name_of_the_scheme(url: str) -> None:
    open_database(Path("nowhere"), url.replace("postgresql:", "postgres:")).dispose()


def test_two_servers_forget_the_same_rows_at_once(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tenuto.access.usage.BATCH", 500)
    now = time.time()
    with opened(tmp_path, url) as first, opened(tmp_path, url) as second:
        record(first.engine, [a_row(at=now - 31 * DAY_S)] * 5000 + [a_row(at=now)])
        threads = [
            threading.Thread(target=flush_often, args=[Recorder(store.engine, retention_days=30)])
            for store in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stored(first.engine) == [a_row(at=now)]
    assert not caplog.records


def flush_often(recorder: Recorder) -> None:
    for _ in range(11):
        recorder.flush()


def test_postgres_restarted(
    postgres: Postgres, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that were open before are not an error afterwards."""
    with opened(tmp_path, url) as store:
        recorder = Recorder(store.engine)
        with postgres.stopped():
            pass
        assert store.change_number() == 0
        with postgres.stopped(), caplog.at_level(logging.WARNING):
            with pytest.raises(Unavailable) as caught:
                store.change_number()
            recorder.add(a_row())
            recorder.flush()
        assert PASSWORD not in caught.value.message
        assert PASSWORD not in caplog.text
        assert "\n" not in caught.value.message
        assert store.change_number() == 0
        recorder.flush()
        assert stored(store.engine) == [a_row()]


def test_one_that_answers_nothing_is_given_up_soon(postgres: Postgres) -> None:
    began = time.monotonic()
    with postgres.frozen():
        assert "timeout" in refusal(postgres.url("postgres"))
    assert time.monotonic() - began < 5
