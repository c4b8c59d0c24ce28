"""The registry is read again while the server runs: on SIGHUP, or whenever its file changes."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import Change, awatch

from tenuto.engine.arguments import engine_argument_names
from tenuto.errors import ConfigError
from tenuto.models.pool import Pool
from tenuto.models.registry import Registry, load_registry

logger = logging.getLogger(__name__)


@dataclass
class Reloader:
    """`chosen` are the ids that are to be loaded at the start of a server with that registry."""

    path: Path
    registry: Registry
    pool: Pool
    chosen: Callable[[Registry], Sequence[str]]
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def reload(self) -> None:
        """A file that is not a registry changes nothing. The start's own loads come first."""
        await self.pool.started.wait()
        async with self._lock:
            await self._adopt()

    async def _adopt(self) -> None:
        try:
            found, eager = await asyncio.to_thread(self._read)
        except ConfigError as error:
            logger.error("the registry was not read again: %s", error.message)
            return
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
        """Reloads whenever the file was written; editors put a new one in its place."""

        def concerns(change: Change, path: str) -> bool:
            return Path(path).name == self.path.name

        async for _ in awatch(self.path.resolve().parent, watch_filter=concerns, recursive=False):
            await self.reload()

    def _read(self) -> tuple[Registry, Sequence[str]]:
        found = load_registry(self.path, engine_argument_names())
        return found, self.chosen(found)
