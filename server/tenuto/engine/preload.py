"""What the fork server imports before the first engine is forked from it; imported nowhere else.

What is missing here is imported again by every engine while it starts.
"""

import importlib
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

import llguidance

from tenuto.engine import phases
from tenuto.engine.importing import uncollected
from tenuto.engine.verifier import MAX_ITEMS_PER_TOKEN

COMMON = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.model_loader.default_loader",
)
BACKENDS = {
    "cpu": "vllm.v1.attention.backends.cpu_attn",
    "cuda": "vllm.v1.attention.backends.flash_attn",
}
STATS_EVERY_S = 0.5
WORKERS = {
    "cpu": ("vllm.v1.worker.cpu_worker", "CPUWorker"),
    "cuda": ("vllm.v1.worker.gpu_worker", "Worker"),
}


def import_all() -> None:
    from vllm.platforms import current_platform

    device = current_platform.device_type
    for name in COMMON:
        importlib.import_module(name)
    if device in WORKERS:
        importlib.import_module(BACKENDS[device])
        module, worker = WORKERS[device]
        phases.time_steps(getattr(importlib.import_module(module), worker))
    phases.time_compilation(importlib.import_module("vllm.compilation.decorators"))


def seldom(make_stats: Callable[..., Any]) -> Callable[..., Any]:
    """An engine says at most that often how it is, and when it has nothing left to do: vLLM's says
    so with each step, for up to 10 us of the serving process."""

    def made(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        if now < getattr(scheduler, "stats_due_at", 0.0) and scheduler.has_unfinished_requests():
            return None
        scheduler.stats_due_at = now + STATS_EVERY_S
        return make_stats(scheduler, *args, **kwargs)

    return made


class LimitedMatcher:
    """llguidance's matcher, in place of it: a token's work is done in the loop that serves all
    requests."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._limits = llguidance.LLParserLimits(step_max_items=MAX_ITEMS_PER_TOKEN)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._matcher(*args, **{"limits": self._limits, **kwargs})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)


# Each engine has its logs set up when it starts; before, this one has nobody to tell.
logging.getLogger("vllm").setLevel(logging.ERROR)
# Ctrl-C is for the server alone, which ends this process with itself.
signal.signal(signal.SIGINT, signal.SIG_IGN)
with phases.here.timed("import"), uncollected():
    import_all()
# vLLM has no settings for these.
Scheduler = importlib.import_module("vllm.v1.core.sched.scheduler").Scheduler
Scheduler.make_stats = seldom(Scheduler.make_stats)
setattr(llguidance, "LLMatcher", LimitedMatcher(llguidance.LLMatcher))  # noqa: B010
