"""The state database, SQLite in the state directory or Postgres: opened, migrated, backed up."""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from tenuto.access.schema import changes
from tenuto.errors import ConfigError, Unavailable

logger = logging.getLogger(__name__)
FILE_NAME = "state.db"
MIGRATIONS = Path(__file__).with_name("migrations")
# Another process may be writing; nobody holds the file for longer than a batch.
BUSY_TIMEOUT_S = 10
# Of libpq, by its names; the URL's own go first. Where the host of Postgres has gone without a
# word, a statement ends after some 10 s.
POSTGRES_OPTIONS = {
    "connect_timeout": "2",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "application_name": "tenuto",
}
# The thread that looks for changed keys, and the one that writes usage.
POSTGRES_CONNECTIONS = 2
# Of the lock that a migration holds: any number that nobody else takes in this database.
MIGRATION_LOCK = 0x74656E75746F


def open_database(state_dir: Path, url: str | None = None) -> Engine:
    """The database at its newest version; made when there is none. `url`: a Postgres, else SQLite.

    Errors: `ConfigError` for one that cannot be used, or that a newer Tenuto has written.
    """
    return _open_sqlite(state_dir) if url is None else _open_postgres(url)


def _open_postgres(setting: str) -> Engine:
    url = _postgres_url(setting)
    # Neither user nor password.
    name = f"database {url.database or ''} on {url.host or 'this host'}"
    try:
        engine = create_engine(url, pool_size=POSTGRES_CONNECTIONS, pool_pre_ping=True)
    except ModuleNotFoundError:
        raise ConfigError("setting database_url: needs psycopg, of the extra `cluster`") from None
    try:
        _migrate(engine, name)
    except (SQLAlchemyError, ConfigError) as error:
        engine.dispose()
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name}: {cause_of(error)}") from None
    return engine


def _postgres_url(setting: str) -> URL:
    """Errors: `ConfigError`, without the value, which holds a password."""
    try:
        url = make_url(setting)
    except (SQLAlchemyError, ValueError):
        url = None
    # What follows an @ in a password would be taken for the host, and told in errors.
    if url is None or url.drivername not in ("postgresql", "postgres") or "@" in (url.host or ""):
        raise ConfigError(
            "setting database_url: should be postgresql://user:password@host/database, with %40 "
            "for an @ in the password"
        )
    query = POSTGRES_OPTIONS | dict(url.query)
    return url.set(drivername="postgresql+psycopg", query=query)


def _open_sqlite(state_dir: Path) -> Engine:
    path = state_dir / FILE_NAME
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(state_dir):
            # Made here, so that it never has another mode; its journals take the same.
            path.touch(mode=0o600)
            path.chmod(0o600)
            engine = _engine(path)
            _migrate(engine, f"state database {path}", path)
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


def _migrate(engine: Engine, name: str, path: Path | None = None) -> None:
    """`path`: a file to be copied before. Errors: `ConfigError`."""
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
        if engine.dialect.name == "postgresql":
            # One process at a time, until its transaction has ended.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        present = MigrationContext.configure(connection).get_current_revision()
        if present == newest:
            return
        if present is not None:
            try:
                scripts.get_revision(present)
            except CommandError:
                raise ConfigError(f"{name}: a newer version wrote it") from None
            if path is not None:
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
        raise Unavailable(f"The state database cannot be used: {cause_of(error)}.") from None


def cause_of(error: Exception) -> str:
    """One line. SQLAlchemy's own words hold the values of the statement, Postgres's further lines
    those of the row."""
    cause = getattr(error, "orig", None)
    return str(cause).partition("\n")[0] if cause is not None else type(error).__name__


def change(connection: Connection) -> None:
    """To be called in every transaction that changes keys: other processes read them again."""
    connection.execute(changes.update().values(number=changes.c.number + 1))
