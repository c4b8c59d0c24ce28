"""Stored keys as every process knows them: in memory, and read again when one has changed."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from tenuto.access.key_store import KeyStore
from tenuto.access.keys import Keys
from tenuto.errors import Unavailable

logger = logging.getLogger(__name__)
# A revoked key stops working within a second, in every process, also on a busy machine. Each look
# costs the thread 0.1 ms.
INTERVAL_S = 0.25


class KeyWatcher:
    """Puts the keys of `store` into `keys`, in a thread of its own."""

    def __init__(self, store: KeyStore, keys: Keys) -> None:
        self.store, self.keys = store, keys
        self._seen: int | None = None
        # Whoever has read last must not be overtaken by one who has read before.
        self._lock = threading.Lock()
        # Not the event loop's threads: a revoked key would work for as long as models load there.
        self._thread = ThreadPoolExecutor(1, "keys")

    def look(self) -> None:
        """Errors: `Unavailable`."""
        with self._lock:
            # First, so that what changes meanwhile is seen the next time.
            number = self.store.change_number()
            if number != self._seen:
                self.keys.adopt(self.store.valid_keys(), has_stored=self.store.has_any())
                self._seen = number

    async def refresh(self) -> None:
        """A change before this call is in force when it returns. Errors: `Unavailable`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.look)

    async def run(self) -> None:
        """Until it is cancelled, which is the watcher's end. While the database does not answer,
        the known keys stay."""
        try:
            await self._watch()
        finally:
            self._thread.shutdown(wait=False)

    async def _watch(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.refresh()
                failing = False
            # Whatever it is: revoked keys must stop working as soon as it is over.
            except Exception as error:
                if not failing:
                    cause = error if isinstance(error, Unavailable) else type(error).__name__
                    logger.error("keys are not read again: %s", cause)
                failing = True
