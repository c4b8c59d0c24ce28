"""Engines on vLLM's `AsyncLLM`. This file and its `vllm_*` neighbours alone know vLLM."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, get_args

import vllm.v1.engine.utils
from vllm import PoolingParams
from vllm.config import StructuredOutputsConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from tenuto.engine.forkserver import EngineContext, EngineProcess, first_line
from tenuto.engine.fp8 import compressed_tensors_twin
from tenuto.engine.types import Constraint, EngineSpec, EngineStats, Prompt, Sampling, Step
from tenuto.engine.verifier import Verifier
from tenuto.engine.vllm_errors import constraint_errors, translated
from tenuto.engine.vllm_params import sampling_params, step
from tenuto.engine.vllm_prompts import VllmPrompts
from tenuto.errors import CheckpointError, EngineLost, EngineStartError

logger = logging.getLogger(__name__)
# Without a KV budget vLLM takes a share of the whole host's memory and refuses a second engine.
DEFAULT_CPU_KV_CACHE_BYTES = 256 << 20
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

    async def prompts(self, spec: EngineSpec) -> VllmPrompts:
        return await asyncio.to_thread(self._prompts, spec)

    async def engine(self, spec: EngineSpec) -> "VllmEngine":
        # One at a time: vLLM measures memory while it starts, and the context knows one process.
        async with self._starting:
            engine = await asyncio.to_thread(self._start, spec)
        try:
            with _named(spec, "cannot load its LoRAs"):
                await engine.load_loras()
            await engine.require(spec)
        except BaseException:
            await engine.close(0)
            raise
        return engine

    def _prompts(self, spec: EngineSpec) -> VllmPrompts:
        args = _common_args(spec) | {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
        with _named(spec, "cannot render prompts"):
            return VllmPrompts(AsyncEngineArgs(**args).create_engine_config(), spec)

    def _start(self, spec: EngineSpec) -> "VllmEngine":
        began = time.monotonic()
        with _named(spec, "did not start", self._context):
            config = AsyncEngineArgs(**self._engine_args(spec)).create_engine_config()
            configured = time.monotonic()
            llm = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        logger.info(
            "model %s: engine started in %.1f s (configuration %.1f s, process and weights %.1f s)",
            spec.model_id,
            time.monotonic() - began,
            configured - began,
            time.monotonic() - configured,
        )
        assert self._context.process is not None
        loras = [
            LoRARequest(lora.id, number, str(lora.adapter))
            for number, lora in enumerate(spec.loras, start=1)
        ]
        # Another backend may accept other constraints.
        verified = config.structured_outputs_config.backend == "guidance"
        return VllmEngine(llm, self._context.process, loras, self._verifier if verified else None)

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
        return args | _lora_args(spec) | dict(spec.engine_args) | _constraint_args(spec)


class VllmEngine:
    """`tenuto.engine.base.Engine` over one `AsyncLLM` and its engine process."""

    def __init__(
        self,
        llm: AsyncLLM,
        process: EngineProcess,
        loras: list[LoRARequest],
        verifier: Verifier | None,
    ) -> None:
        self._llm = llm
        self._process = process
        self._verifier = verifier
        self._loras = {lora.lora_name: lora for lora in loras}

    @property
    def capacity(self) -> int:
        num_running: int = self._llm.vllm_config.scheduler_config.max_num_seqs
        return num_running + max(1, num_running // 8)

    async def load_loras(self) -> None:
        """Now, so that a bad adapter is found before the first request for it."""
        for lora in self._loras.values():
            await self._llm.add_lora(lora)

    async def require(self, spec: EngineSpec) -> None:
        """Errors: `EngineStartError` when the model cannot do what the registry says."""
        tasks = await self._llm.get_supported_tasks()
        if spec.task not in tasks:
            able = ", ".join(tasks)
            raise EngineStartError(f"model {spec.model_id}: cannot {spec.task}, but: {able}")

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        with translated():
            params = sampling_params(sampling)
            lora = self._loras[sampling.lora] if sampling.lora else None
            rendered: Any = tokens_input(prompt.token_ids, cache_salt=sampling.cache_salt)
            if sampling.constraint is not None:
                with constraint_errors(sampling.constraint.param):
                    await self._require(sampling.constraint)
                    rendered = await self._verified(rendered, params, request_id, lora)
                rendered.reasoning_ended = prompt.reasoning_ended
                kwargs = {"chat_template_kwargs": dict(prompt.template_kwargs)}
                rendered.reasoning_parser_kwargs = kwargs
            first = True
            outputs = self._llm.generate(rendered, params, request_id, lora_request=lora)
            async with aclosing(outputs):
                async for output in outputs:
                    yield step(output, sampling, first=first)
                    first = False

    async def embed(self, prompt: Prompt, dimensions: int | None, request_id: str) -> list[float]:
        params = PoolingParams(task="embed", dimensions=dimensions)
        with translated("input"):
            outputs = self._llm.encode(tokens_input(prompt.token_ids), params, request_id)
            async with aclosing(outputs):
                vectors = [output.outputs.data async for output in outputs]
        vector: list[float] = vectors[-1].float().tolist()
        # What vLLM gives for a request that was aborted.
        if not vector:
            raise EngineLost
        return vector

    async def _require(self, constraint: Constraint) -> None:
        """Errors: `ValueError`."""
        if self._verifier is None or constraint.kind in ("json_object", "choice"):
            return
        if not await self._verifier.accepts(constraint.kind, constraint.value):
            raise ValueError

    async def _verified(
        self, rendered: Any, params: Any, request_id: str, lora: LoRARequest | None
    ) -> Any:
        """vLLM verifies constraints while it processes a request: seconds for a hostile schema,
        which must not stall the event loop."""
        tasks = await self._llm.get_supported_tasks()
        return await asyncio.to_thread(
            self._llm.input_processor.process_inputs,
            request_id,
            rendered,
            params,
            tasks,
            lora_request=lora,
        )

    async def wait_lost(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        sentinel = self._process.sentinel
        loop.add_reader(sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(sentinel)

    def stats(self) -> EngineStats:
        return EngineStats(unfinished_requests=self._llm.get_num_unfinished_requests())

    async def close(self, drain_s: float) -> None:
        # vLLM's shutdown leaves the iterators of running requests waiting for ever.
        self._llm.output_processor.propagate_error(EngineDeadError())
        await asyncio.to_thread(self._llm.shutdown, drain_s)


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
