"""vLLM as a backend that is imported in a thread on first use, since the import takes seconds."""

import asyncio
import importlib
import logging
import time
from pathlib import Path

from tenuto.engine.base import Backend, Engine, Prompts
from tenuto.engine.forkserver import EngineContext
from tenuto.engine.importing import uncollected
from tenuto.engine.types import EngineSpec
from tenuto.errors import EngineStartError

logger = logging.getLogger(__name__)


class LazyVllm:
    """`tenuto.engine.base.Backend`. Errors: `EngineStartError` where vLLM cannot be imported."""

    def __init__(self, context: EngineContext, cache_dir: Path, drain_s: float) -> None:
        self._context = context
        self._cache_dir = cache_dir
        self._drain_s = drain_s
        self._importing: asyncio.Task[Backend] | None = None
        self._import_s = 0.0

    async def prompts(self, spec: EngineSpec) -> Prompts:
        return await (await self._backend()).prompts(spec)

    async def engine(self, spec: EngineSpec) -> Engine:
        return await (await self._backend()).engine(spec)

    async def imported(self) -> float:
        """Waits for vLLM's import, and says how many seconds it took."""
        await self._backend()
        return self._import_s

    async def _backend(self) -> Backend:
        if self._importing is None:
            self._importing = asyncio.create_task(self._import())
        return await asyncio.shield(self._importing)

    async def _import(self) -> Backend:
        began = time.monotonic()
        try:
            importlib.import_module("tenuto.engine.quiet")
            with uncollected():
                module = await asyncio.to_thread(importlib.import_module, "tenuto.engine.vllm")
        except ImportError as error:
            raise EngineStartError(f"vLLM cannot be imported: {error}") from None
        self._import_s = time.monotonic() - began
        logger.info("vLLM imported in %.1f s", self._import_s)
        backend: Backend = module.VllmBackend(self._context, self._cache_dir, self._drain_s)
        return backend
