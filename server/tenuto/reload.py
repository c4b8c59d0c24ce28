"""The registry is read again while the server runs: on SIGHUP, or whenever its file changes."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from tenuto.engine.arguments import engine_argument_names
from tenuto.errors import ConfigError
from tenuto.models.base import Models
from tenuto.models.registry import Registry, load_registry

logger = logging.getLogger(__name__)
# Nothing else sees a change of a link on the way, one just before a watch, or one from afar.
LOOK_EVERY_MS = 1_000


@dataclass
class Reloader:
    """`chosen` are the ids that are to be loaded at the start of a server with that registry."""

    path: Path
    registry: Registry
    pool: Models
    chosen: Callable[[Registry], Sequence[str]]
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._read_version = _version(self.path)

    async def reload(self) -> None:
        """A file that is not a registry changes nothing. The start's own loads come first."""
        await self.pool.started.wait()
        async with self._lock:
            try:
                await self._adopt()
            except ConfigError as error:
                logger.error("the registry was not read again: %s", error.message)
            except Exception:
                logger.exception("the registry was not read again")

    async def _adopt(self) -> None:
        found, eager = await asyncio.to_thread(self._read)
        before = {entry.id: entry for entry in self.registry.present()}
        self.registry.adopt(found)
        after = {entry.id: entry for entry in self.registry.present()}
        self.pool.adopt(after.values())
        for model_id in eager:
            if model_id not in before:
                self.pool.want(model_id)
        both = before.keys() & after.keys()
        logger.info(
            "the registry was read again: %d models added, %d removed, %d changed",
            len(after.keys() - before.keys()),
            len(before.keys() - after.keys()),
            sum(before[name] is not after[name] for name in both),
        )

    async def watch(self) -> None:
        """Reloads whenever the file was written, or the path leads to another one: editors put a
        new file in its place, Kubernetes a new link to its folder."""
        while True:
            try:
                await self._watch_folders()
            except Exception as error:
                logger.error("the registry is not watched: %s", type(error).__name__)
                await asyncio.sleep(LOOK_EVERY_MS / 1000)

    async def _watch_folders(self) -> None:
        """Until the file lies in another folder."""
        folders = await asyncio.to_thread(_folders, self.path)
        async for _ in awatch(
            *folders,
            # Any change, since a link's target has names of its own.
            watch_filter=None,
            recursive=False,
            rust_timeout=LOOK_EVERY_MS,
            yield_on_timeout=True,
        ):
            if await asyncio.to_thread(_version, self.path) != self._read_version:
                await self.reload()
            if await asyncio.to_thread(_folders, self.path) != folders:
                return

    def _read(self) -> tuple[Registry, Sequence[str]]:
        # First, so that what is written meanwhile is read the next time.
        self._read_version = _version(self.path)
        found = load_registry(self.path, engine_argument_names())
        return found, self.chosen(found)


def _folders(path: Path) -> set[Path]:
    """That of the path, and that of the file to which its links lead."""
    return {path.absolute().parent, path.resolve().parent}


def _version(path: Path) -> tuple[int, ...] | None:
    """Differs once the file was written or replaced; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
