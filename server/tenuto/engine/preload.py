"""What the fork server imports before the first engine is forked from it; imported nowhere else.

What is missing here is imported again by every engine while it starts.
"""

import importlib

from vllm.platforms import current_platform

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
