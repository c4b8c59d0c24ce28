"""`tenuto serve` that drops metrics and log lines, and takes them up again, with each SIGUSR1: two
processes that do the same differ by more than what these cost.

python -m scripts.benchmarks.unobserved serve [arguments of tenuto serve]
"""

import asyncio
import importlib
import logging
import signal
from types import FunctionType
from typing import Any

from tenuto.cli import main
from tenuto.engine.base import Backend
from tenuto.engine.lazy import LazyVllm
from tenuto.observe.metrics import Gaps, Metrics


class Toggled(LazyVllm):
    async def _import(self) -> Backend:
        backend = await super()._import()
        readings = importlib.import_module("tenuto.engine.vllm_stats").EngineReadings
        own: list[Any] = [Metrics.answered, Metrics.used, Metrics.gaps, Gaps.add]
        switches = [(found, _nothing()) for found in [*own, readings.count, readings.record]]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: _toggle(switches))
        return backend


def _nothing() -> FunctionType:
    def nothing(*args: object, **kwargs: object) -> None:
        pass

    assert isinstance(nothing, FunctionType)
    return nothing


def _toggle(switches: list[tuple[FunctionType, FunctionType]]) -> None:
    """Their code alone: who has a method already has it changed."""
    for found, other in switches:
        found.__code__, other.__code__ = other.__code__, found.__code__
    root = logging.getLogger()
    root.setLevel(logging.INFO if root.level == logging.ERROR else logging.ERROR)


if __name__ == "__main__":
    setattr(importlib.import_module("tenuto.wiring"), "LazyVllm", Toggled)  # noqa: B010
    main()
