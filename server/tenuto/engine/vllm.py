"""Engines on vLLM's `AsyncLLM`. This file and its `vllm_*` neighbours alone know vLLM."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import vllm.envs
import vllm.v1.engine.utils
from vllm.config import StructuredOutputsConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from tenuto.engine.forkserver import EngineContext, first_line
from tenuto.engine.fp8 import compressed_tensors_twin
from tenuto.engine.phases import Phases
from tenuto.engine.types import TASK_OF_MODEL, EngineSpec
from tenuto.engine.verifier import Verifier
from tenuto.engine.vllm_engine import VllmEngine
from tenuto.engine.vllm_prompts import VllmPrompts
from tenuto.engine.vllm_stats import EngineReadings
from tenuto.errors import CheckpointError, EngineStartError

logger = logging.getLogger(__name__)
# Without a KV budget vLLM takes a share of the whole host's memory and refuses a second engine.
DEFAULT_CPU_KV_CACHE_BYTES = 256 << 20
# Without it vLLM plans for a batch job: on the largest GPUs for an eighth of a server's sequences.
SERVER = UsageContext.OPENAI_API_SERVER
# With a KV budget vLLM takes no share of the GPU, and yet wants that much to be free at its start:
# beside another model it never would. What fits is the planner's to say. Not tried on a GPU yet.
UNGUARDED_SHARE = 0.05


class VllmBackend:
    """`tenuto.engine.base.Backend`. `context` is the fork server's, already started."""

    def __init__(self, context: EngineContext, cache_dir: Path, drain_s: float) -> None:
        self._context = context
        self._cache_dir = cache_dir
        self._drain_s = drain_s
        self._starting = asyncio.Lock()
        self._verifier = Verifier()
        vllm.v1.engine.utils.get_mp_context = lambda: context
        # Else each request reads some of them again, one by one.
        vllm.envs.enable_envs_cache()

    async def prompts(self, spec: EngineSpec) -> VllmPrompts:
        return await asyncio.to_thread(self._prompts, spec)

    async def engine(self, spec: EngineSpec) -> VllmEngine:
        phases = Phases()
        # The tasks that vLLM begins here inherit it.
        TASK_OF_MODEL.set(spec.model_id)
        # One at a time: vLLM measures memory while it starts, and the context knows one process.
        async with self._starting:
            engine = await self._context.in_thread(
                lambda: self._start(spec, phases), close=lambda made: made.close(0)
            )
        try:
            with phases.timed("LoRAs"), _named(spec, "cannot load its LoRAs"):
                await engine.load_loras()
            await engine.require(spec)
        except BaseException:
            await engine.close(0)
            raise
        total_s = sum(phases.values())
        logger.info("model %s: engine started in %.1f s (%s)", spec.model_id, total_s, phases)
        return engine

    def _prompts(self, spec: EngineSpec) -> VllmPrompts:
        args = _common_args(spec) | {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
        with _named(spec, "cannot render prompts"):
            return VllmPrompts(AsyncEngineArgs(**args).create_engine_config(), spec)

    def _start(self, spec: EngineSpec, phases: Phases) -> VllmEngine:
        self._context.model_id, self._context.devices = spec.model_id, spec.devices
        with _named(spec, "did not start", self._context):
            with phases.timed("checkpoint"):
                args = self._engine_args(spec)
            with phases.timed("configuration"):
                config = AsyncEngineArgs(**args).create_engine_config(SERVER)
            with phases.timed("connection"):
                loggers: Any = [EngineReadings]
                llm = AsyncLLM.from_vllm_config(
                    config, stat_loggers=loggers, disable_log_stats=True
                )
                phases.update(self._context.phases())
        assert self._context.process is not None
        loras = [
            LoRARequest(lora.id, number, str(lora.adapter))
            for number, lora in enumerate(spec.loras, start=1)
        ]
        # Another backend may accept other constraints.
        verified = config.structured_outputs_config.backend == "guidance"
        verifier = self._verifier if verified else None
        return VllmEngine(llm, self._context.process, loras, verifier, phases)

    def _engine_args(self, spec: EngineSpec) -> dict[str, Any]:
        args = _common_args(spec) | {
            "kv_cache_dtype": spec.kv_cache_dtype,
            "scheduling_policy": "priority",
            "shutdown_timeout": int(self._drain_s),
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if spec.kv_cache_memory_bytes is not None:
            args["kv_cache_memory_bytes"] = spec.kv_cache_memory_bytes
        if current_platform.is_cpu():
            args["model"] = str(_for_cpu(spec.checkpoint, self._cache_dir))
            args.setdefault("kv_cache_memory_bytes", DEFAULT_CPU_KV_CACHE_BYTES)
            args |= {"enforce_eager": True, "distributed_executor_backend": "uni"}
        elif spec.kv_cache_memory_bytes is not None:
            args["gpu_memory_utilization"] = UNGUARDED_SHARE
        if spec.sleep and _can_sleep():
            args["enable_sleep_mode"] = True
        return args | _lora_args(spec) | dict(spec.engine_args) | _constraint_args(spec)


def _common_args(spec: EngineSpec) -> dict[str, Any]:
    args: dict[str, Any] = {
        "model": str(spec.checkpoint),
        "served_model_name": spec.model_id,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "pipeline_parallel_size": spec.pipeline_parallel_size,
        "trust_remote_code": spec.trust_remote_code,
    }
    if spec.task == "embed":
        args["runner"] = "pooling"
    if spec.reasoning_parser is not None:
        # So that constraints begin where the reasoning ends.
        args["reasoning_parser"] = spec.reasoning_parser
    if spec.max_model_len is not None:
        args["max_model_len"] = spec.max_model_len
    return args


def _constraint_args(spec: EngineSpec) -> dict[str, Any]:
    """The backend that vLLM chooses of its own takes seconds per token for some short regexes and
    grammars, in the loop that serves all requests; this one takes milliseconds."""
    chosen = {"backend": "guidance", **spec.engine_args.get("structured_outputs_config", {})}
    return {"structured_outputs_config": StructuredOutputsConfig(**chosen)}


def _lora_args(spec: EngineSpec) -> dict[str, Any]:
    if not spec.loras:
        return {}
    highest = max(lora.rank for lora in spec.loras)
    # vLLM knows some ranks only, and refuses the adapter when even its largest is too small.
    fitting = [rank for rank in get_args(MaxLoRARanks) if rank >= highest]
    return {
        "enable_lora": True,
        "max_loras": len(spec.loras),
        "max_lora_rank": min(fitting, default=max(get_args(MaxLoRARanks))),
    }


def _can_sleep() -> bool:
    available: bool = (
        current_platform.is_sleep_mode_available()
        and current_platform.is_cumem_allocator_available()
    )
    return available


def _for_cpu(checkpoint: Path, cache_dir: Path) -> Path:
    """vLLM's CPU build has no kernel for `quant_method: fp8`, but one for compressed-tensors."""
    config = json.loads((checkpoint / "config.json").read_text())
    if config.get("quantization_config", {}).get("quant_method") != "fp8":
        return checkpoint
    return compressed_tensors_twin(checkpoint, cache_dir / "fp8")


@contextmanager
def _named(spec: EngineSpec, what: str, context: EngineContext | None = None) -> Iterator[None]:
    """Any failure to start becomes one line that names the model and the first cause."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        cause = (context.cause() if context else None) or first_line(error)
        raise EngineStartError(f"model {spec.model_id}: {what}: {cause}") from None
