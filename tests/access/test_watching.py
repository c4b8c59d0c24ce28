"""Stored keys reach the memory of every process, also after the database has failed."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from tenuto.access import watching
from tenuto.access.key_store import KeyStore
from tenuto.access.keys import Keys
from tenuto.access.new_key import NewKey
from tenuto.access.watching import KeyWatcher
from tenuto.errors import AuthError, Unavailable, UnknownKey
from tests.access.conftest import NewUrl
from tests.access.stores import opened


@pytest.fixture
def store(tmp_path: Path, new_url: NewUrl) -> Iterator[KeyStore]:
    with opened(tmp_path, new_url()) as store:
        yield store


def beside(store: KeyStore, directory: Path) -> AbstractContextManager[KeyStore]:
    """The same store, as another process has it."""
    url = store.engine.url
    if url.drivername == "sqlite":
        return opened(directory)
    setting = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return opened(directory, setting)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "INTERVAL_S", 0)


@asynccontextmanager
async def watched(store: KeyStore, keys: Keys) -> AsyncIterator[None]:
    watcher = KeyWatcher(store, keys)
    task = asyncio.create_task(watcher.run())
    yield
    assert not task.done()
    await ended(task, watcher)


async def ended(task: asyncio.Task[None], watcher: KeyWatcher) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # Its last look has a connection, which must not outlive the pool.
    watcher._thread.shutdown()


async def until(condition: Callable[[], object]) -> None:
    """Beside the watcher, which looks at the database in a thread."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10, "it did not come to that"
        await asyncio.to_thread(lambda: None)


def is_known(keys: Keys, secret: str) -> bool:
    try:
        return keys.authenticate(f"Bearer {secret}") is not None
    except UnknownKey:
        return False


def test_keys_that_come_and_go(store: KeyStore) -> None:
    keys = Keys(admin=["sk-fixed"])
    watcher = KeyWatcher(store, keys)
    created, secret = store.create(NewKey())
    assert not is_known(keys, secret)
    watcher.look()
    assert is_known(keys, secret)
    store.revoke(created.key.id)
    assert is_known(keys, secret)
    watcher.look()
    assert not is_known(keys, secret)
    assert is_known(keys, "sk-fixed")


def test_the_last_key_leaves_a_closed_server(store: KeyStore) -> None:
    keys = Keys()
    watcher = KeyWatcher(store, keys)
    watcher.look()
    assert keys.authenticate(None) is None
    store.revoke(store.create(NewKey())[0].key.id)
    watcher.look()
    with pytest.raises(AuthError):
        keys.authenticate(None)


def test_nothing_is_read_when_nothing_has_changed(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = KeyWatcher(store, Keys())
    watcher.look()
    monkeypatch.delattr(KeyStore, "valid_keys")
    watcher.look()


async def test_another_process_revokes(store: KeyStore, tmp_path: Path) -> None:
    keys = Keys()
    async with watched(store, keys):
        with beside(store, tmp_path) as other:
            created, secret = other.create(NewKey())
            await until(lambda: keys)
            assert is_known(keys, secret)
            other.revoke(created.key.id)
            await until(lambda: not is_known(keys, secret))


async def test_a_change_of_this_process_is_in_force_at_once(store: KeyStore) -> None:
    keys = Keys()
    watcher = KeyWatcher(store, keys)
    secret = store.create(NewKey())[1]
    await watcher.refresh()
    assert is_known(keys, secret)


async def test_it_does_not_wait_for_other_threads(store: KeyStore) -> None:
    """Models may load in all of the event loop's own."""
    keys = Keys()
    watcher = KeyWatcher(store, keys)
    secret = store.create(NewKey())[1]
    loop, free = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    load = loop.run_in_executor(None, free.wait, 30)
    try:
        async with asyncio.timeout(10):
            await watcher.refresh()
        assert is_known(keys, secret)
    finally:
        free.set()
        await load


async def test_its_thread_ends_with_it(store: KeyStore) -> None:
    watcher = KeyWatcher(store, Keys())
    task = asyncio.create_task(watcher.run())
    await watcher.refresh()
    await ended(task, watcher)
    with pytest.raises(RuntimeError, match="after shutdown"):
        await watcher.refresh()


async def test_a_failing_database_is_said_once_and_survived(
    store: KeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys()
    created, secret = store.create(NewKey())
    with caplog.at_level(logging.INFO, watching.__name__), beside(store, tmp_path) as other:
        async with watched(store, keys):
            await until(lambda: keys)
            rename(other, "changes", "hidden")
            await until(lambda: caplog.records)
            was_known = is_known(keys, secret)
            await asyncio.to_thread(fail_often, store)
            rename(other, "hidden", "changes")
            other.revoke(created.key.id)
            await until(lambda: not is_known(keys, secret))
    assert was_known
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("keys are not read again: The state database cannot be used: ")
    assert "changes" in lines[0]


def rename(store: KeyStore, old: str, new: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


def fail_often(store: KeyStore) -> None:
    """For as long as the watcher's next looks take, too."""
    for _ in range(20):
        with pytest.raises(Unavailable):
            store.change_number()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[KeyStore]:
    with opened(tmp_path) as store:
        yield store


async def test_whatever_goes_wrong_the_watcher_goes_on(
    sqlite: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    store, keys = sqlite, Keys()
    secret = store.create(NewKey(models=["a"]))[1]
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE keys SET models = 'sk-no-json'"))
    async with watched(store, keys):
        await until(lambda: caplog.records)
        with store.engine.begin() as connection:
            connection.execute(text("UPDATE keys SET models = NULL"))
        await until(lambda: keys)
    assert is_known(keys, secret)
    assert "sk-no-json" not in caplog.text
