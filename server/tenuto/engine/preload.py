"""What the fork server imports before the first engine is forked from it; imported nowhere else.

What is missing here is imported again by every engine while it starts.
"""

import importlib
from typing import Any

import llguidance
from vllm.platforms import current_platform

from tenuto.engine.verifier import MAX_ITEMS_PER_TOKEN

WORKERS = {
    "cpu": ("vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn"),
    "cuda": ("vllm.v1.worker.gpu_worker", "vllm.v1.attention.backends.flash_attn"),
}
COMMON = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.model_loader.default_loader",
)

for name in (*COMMON, *WORKERS.get(current_platform.device_type, ())):
    importlib.import_module(name)


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


# vLLM has no setting for it.
setattr(llguidance, "LLMatcher", LimitedMatcher(llguidance.LLMatcher))  # noqa: B010
