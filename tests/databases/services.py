"""A Postgres and a Redis of the tests' own, from Debian's packages, on free ports."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from scripts.benchmarks.peers import free_port
from tests.deploy.conftest import Installed

PASSWORD = "p%4"
WAIT_S = 20
# Postgres refuses to run as root.
POSTGRES_USER = "postgres" if os.geteuid() == 0 else None


class Service:
    """A process that can be ended and begun again, at the same address and with its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, user=POSTGRES_USER, group=POSTGRES_USER
            )
        began = time.monotonic()
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() - began < WAIT_S
            time.sleep(0.02)

    def stop(self, sent: signal.Signals = signal.SIGINT) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sent)
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    @contextmanager
    def stopped(self, sent: signal.Signals = signal.SIGINT) -> Iterator[None]:
        self.stop(sent)
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


S = TypeVar("S", bound=Service)


class Postgres(Service):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=_version)
        self._number = 0
        (folder / "password").write_text(PASSWORD)
        command = [str(self._programs / "initdb"), "-D", str(folder / "data"), "--username=ada"]
        command += ["--no-sync"]
        command += ["--auth=scram-sha-256", f"--pwfile={folder}/password"]
        command += ["--encoding=UTF8", "--locale=C.UTF-8"]
        options: Any = {"user": POSTGRES_USER, "group": POSTGRES_USER, "cwd": folder}
        subprocess.run(command, check=True, capture_output=True, **options)

    @property
    def command(self) -> list[str]:
        options = {"unix_socket_directories": self.folder, "listen_addresses": "127.0.0.1"}
        # Nobody pulls the plug of this one.
        options |= {"port": self.port, "fsync": "off"}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *arguments]

    def url(self, database: str, password: str = "p%254") -> str:
        """As the setting takes it."""
        return f"postgresql://ada:{password}@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """The URL of a new database."""
        self._number += 1
        self.run("postgres", f"CREATE DATABASE state{self._number}")
        return self.url(f"state{self._number}")

    def run(self, database: str, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def answers(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            self.run("postgres", "SELECT 1")
            return True
        return False


class RedisServer(Service):
    """It forgets everything when it ends."""

    @property
    def command(self) -> list[str]:
        address = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return ["redis-server", *address, "--save", "", "--requirepass", PASSWORD]

    @property
    def url(self) -> str:
        return f"redis://:p%254@127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url, decode_responses=True)

    def answers(self) -> bool:
        import redis

        with self.client() as client, suppress(redis.RedisError):
            return bool(client.ping())
        return False


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """Not pytest's own, which is closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix=f"tenuto-{name}-"))
    if POSTGRES_USER is not None:
        shutil.chown(folder, POSTGRES_USER, POSTGRES_USER)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def _running(kind: type[S], sent: signal.Signals = signal.SIGINT) -> Iterator[S]:
    with _folder(kind.__name__.lower()) as folder:
        service = kind(folder)
        service.start()
        yield service
        service.stop(sent)


@pytest.fixture(scope="session")
def postgres(installed: Installed) -> Iterator[Postgres]:
    installed("postgresql")
    # It ends without a wait for clients that it still knows.
    with _running(Postgres, signal.SIGQUIT) as service:
        yield service


@pytest.fixture(scope="session")
def redis_server(installed: Installed) -> Iterator[RedisServer]:
    installed("redis-server")
    with _running(RedisServer) as service:
        yield service


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Of an empty one."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


def _version(programs: Path) -> int:
    return int(programs.parent.name)
