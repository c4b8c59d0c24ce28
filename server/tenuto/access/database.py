"""The state database: opened, migrated and backed up. SQLite in the state directory."""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from tenuto.access.schema import changes
from tenuto.errors import ConfigError, Unavailable

logger = logging.getLogger(__name__)
FILE_NAME = "state.db"
MIGRATIONS = Path(__file__).with_name("migrations")
# Another process may be writing; nobody holds the file for longer than a batch.
BUSY_TIMEOUT_S = 10


def open_database(state_dir: Path) -> Engine:
    """The database at its newest version; made when there is none.

    Errors: `ConfigError` for a directory or a file that cannot be used, or that a newer Tenuto
    has written.
    """
    path = state_dir / FILE_NAME
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(state_dir):
            # Made here, so that it never has another mode; its journals take the same.
            path.touch(mode=0o600)
            path.chmod(0o600)
            engine = _engine(path)
            _migrate(engine, path)
        return engine
    except OSError as error:
        raise ConfigError(f"state directory {state_dir}: {error.strerror}") from None
    except (DatabaseError, sqlite3.DatabaseError) as error:
        raise ConfigError(f"state database {path}: {error.args[0]}") from None


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S}
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: Any) -> None:
        # Python's own transactions leave out changes of tables; half a migration would stay.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        # A process that is killed loses nothing; the machine's end may cost the last second.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _migrate(engine: Engine, path: Path) -> None:
    # Imported late: the other commands start faster without it.
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    # Alembic takes a single % for a placeholder.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    with engine.begin() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present == newest:
            return
        if present is not None:
            try:
                scripts.get_revision(present)
            except CommandError:
                raise ConfigError(f"state database {path}: a newer version wrote it") from None
            _back_up(path, present)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    logger.info("state database: version %s, was %s", newest, present or "new")


def _back_up(path: Path, version: str) -> None:
    """Beside the database, named after its version; of one version the newest is kept."""
    backup = path.with_name(f"{path.stem}.{version}.db")
    backup.unlink(missing_ok=True)
    backup.touch(mode=0o600)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time, for as long as it makes or migrates the database."""
    descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Errors: `Unavailable` when the database is locked, full or gone."""
    try:
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, sqlite3.Error) as error:
        # SQLAlchemy's own words hold the values of the statement.
        cause = getattr(error, "orig", None) or type(error).__name__
        raise Unavailable(f"The state database cannot be used: {cause}.") from None


def change(connection: Connection) -> None:
    """To be called in every transaction that changes keys: other processes read them again."""
    connection.execute(changes.update().values(number=changes.c.number + 1))
