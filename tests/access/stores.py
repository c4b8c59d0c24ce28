"""Stores of keys in a directory of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenuto.access.database import open_database
from tenuto.access.key_store import KeyStore


@contextmanager
def opened(directory: Path, url: str | None = None) -> Iterator[KeyStore]:
    engine = open_database(directory, url)
    yield KeyStore(engine)
    engine.dispose()
