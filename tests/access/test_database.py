"""The state database: how it lies on the disk, and how it gets from one version to the next."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from tenuto.access import database
from tenuto.access.database import open_database
from tenuto.access.new_key import NewKey
from tenuto.access.schema import metadata
from tenuto.errors import ConfigError
from tests.access.stores import opened

NEXT = """
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    op.execute("CREATE TABLE more (id INTEGER)")
    op.execute("INSERT INTO more VALUES (1)")
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "made" / "st?te %d#"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_database_is_its_owners_alone(directory: Path) -> None:
    with opened(directory) as store:
        store.create(NewKey())
        files = {path.name: mode(path) for path in directory.iterdir()}
        with store.engine.connect() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    assert mode(directory) == 0o700
    assert files.keys() >= {"state.db", "state.db-wal", "state.db-shm"}
    assert set(files.values()) == {0o600}


def test_a_database_that_others_could_read_is_closed_to_them(directory: Path) -> None:
    with opened(directory):
        (directory / "state.db").chmod(0o644)
    with opened(directory):
        assert mode(directory / "state.db") == 0o600


def test_migrations_make_what_the_tables_say(directory: Path) -> None:
    with opened(directory) as store, store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_database_stays_what_it_was(directory: Path) -> None:
    with opened(directory) as store:
        created = store.create(NewKey())[0]
    with opened(directory) as store:
        assert store.rows() == [created]
    assert not list(directory.glob("state.*.db"))


def test_two_processes_that_open_at_once(directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tenuto.access.database import open_database; "
        "input(); open_database(Path(sys.argv[1])).dispose()"
    )
    command = [sys.executable, "-c", code, str(directory)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in processes] == [b"", b""]
    with opened(directory) as store:
        assert store.change_number() == 0


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The migrations, to which a test may add its own."""
    shipped, copied = database.MIGRATIONS, tmp_path / "50 %"
    (copied / "versions").mkdir(parents=True)
    for path in [shipped / "env.py", *(shipped / "versions").glob("v*.py")]:
        (copied / path.relative_to(shipped)).write_text(path.read_text())
    monkeypatch.setattr(database, "MIGRATIONS", copied)
    return copied


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def test_a_backup_before_each_migration(directory: Path, migrations: Path) -> None:
    with opened(directory) as store:
        created = store.create(NewKey(note="kept"))[0]
    (migrations / "versions" / "v0002.py").write_text(NEXT)
    with opened(directory) as store:
        assert store.rows() == [created]
    backup = directory / "state.0001.db"
    assert "more" in tables(directory / "state.db")
    assert "more" not in tables(backup)
    assert mode(backup) == 0o600
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("SELECT note FROM keys").fetchall() == [("kept",)]


def test_half_a_migration_leaves_nothing(directory: Path, migrations: Path) -> None:
    with opened(directory) as store:
        created = store.create(NewKey())[0]
    broken = NEXT + '    op.execute("INSERT INTO nowhere VALUES (1)")\n'
    (migrations / "versions" / "v0002.py").write_text(broken)
    with pytest.raises(ConfigError, match="no such table: nowhere"):
        open_database(directory)
    assert "more" not in tables(directory / "state.db")
    (migrations / "versions" / "v0002.py").unlink()
    with opened(directory) as store:
        assert store.rows() == [created]


def test_a_database_of_a_newer_version(directory: Path) -> None:
    with opened(directory) as store, store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"state\.db: a newer version wrote it$"):
        open_database(directory)
    assert not list(directory.glob("state.*.db"))


def test_a_file_that_is_no_database(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "state.db").write_text("these are not the bytes of a database" * 99)
    with pytest.raises(ConfigError, match=r"state\.db: .*file is not a database"):
        open_database(directory)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(ConfigError, match=r"state directory .*state: File exists"):
        open_database(tmp_path / "state")
