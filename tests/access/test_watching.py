"""Stored keys reach the memory of every process, also after the database has failed."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from tenuto.access import watching
from tenuto.access.key_store import KeyStore
from tenuto.access.keys import Keys
from tenuto.access.new_key import NewKey
from tenuto.access.watching import KeyWatcher
from tenuto.errors import AuthError, Unavailable, UnknownKey
from tests.access.stores import opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with opened(tmp_path) as store:
        yield store


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "INTERVAL_S", 0)


@asynccontextmanager
async def watched(store: KeyStore, keys: Keys) -> AsyncIterator[None]:
    task = asyncio.create_task(KeyWatcher(store, keys).run())
    yield
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    """Beside the watcher, which looks at the database in a thread."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.to_thread(lambda: None)
    raise AssertionError("it did not come to that")


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
        with opened(tmp_path) as other:
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
    secret = store.create(NewKey())[1]
    loop, free = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    load = loop.run_in_executor(None, free.wait, 30)
    try:
        async with asyncio.timeout(10):
            await KeyWatcher(store, keys).refresh()
        assert is_known(keys, secret)
    finally:
        free.set()
        await load


async def test_its_thread_ends_with_it(store: KeyStore) -> None:
    watcher = KeyWatcher(store, Keys())
    task = asyncio.create_task(watcher.run())
    await watcher.refresh()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        await watcher.refresh()


async def test_a_failing_database_is_said_once_and_survived(
    store: KeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys()
    created, secret = store.create(NewKey())
    with caplog.at_level(logging.INFO, watching.__name__), opened(tmp_path) as other:
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
    assert lines == [
        "keys are not read again: The state database cannot be used: no such table: changes."
    ]


def rename(store: KeyStore, old: str, new: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


def fail_often(store: KeyStore) -> None:
    """For as long as the watcher's next looks take, too."""
    for _ in range(20):
        with pytest.raises(Unavailable):
            store.change_number()


async def test_whatever_goes_wrong_the_watcher_goes_on(
    store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys()
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
