"""Where the seconds of an engine's start go.

The engine's process times them and says them to the server. Must be usable before vLLM is imported.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What vLLM calls on a worker while it starts, in this order.
STEPS = {
    "init_device": "device",
    "load_model": "weights",
    "determine_available_memory": "profiling",
    "initialize_from_config": "KV cache",
    "compile_or_warm_up_model": "warm-up",
}


class Phases(dict[str, float]):
    """Seconds by phase, in the order in which the phases ended."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """What is timed inside counts there alone, so that phases never overlap."""
        began, before = time.monotonic(), sum(self.values())
        try:
            yield
        finally:
            inside = sum(self.values()) - before
            self[phase] = self.get(phase, 0.0) + time.monotonic() - began - inside

    def __str__(self) -> str:
        """Without those that took next to nothing."""
        parts = {phase: f"{seconds:.1f}" for phase, seconds in self.items()}
        return ", ".join(f"{phase} {text}" for phase, text in parts.items() if text != "0.0")


# Of this process.
here = Phases()


def tell(made: Phases) -> None:
    """Says them to the server; an engine's process puts its own way here."""


def time_steps(worker: type) -> None:
    for name, phase in STEPS.items():
        setattr(worker, name, _timed(getattr(worker, name), phase))


def time_compilation(decorators: Any) -> None:
    """torch.compile runs at the first forward pass, in the middle of another phase."""
    compilation = decorators.monitor_torch_compile

    @contextmanager
    def monitor(*args: Any, **kwargs: Any) -> Iterator[None]:
        with here.timed("compile"), compilation(*args, **kwargs):
            yield

    decorators.monitor_torch_compile = monitor


def _timed(step: Callable[..., Any], phase: str) -> Callable[..., Any]:
    """Of several workers the first one speaks for all."""

    @functools.wraps(step)
    def run(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with here.timed(phase):
            result = step(worker, *args, **kwargs)
        if worker.rank == 0:
            tell(here)
        return result

    return run
