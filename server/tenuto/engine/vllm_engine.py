"""One loaded model on vLLM's `AsyncLLM`."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import cache, partial
from typing import Any, TypeVar
from uuid import uuid4

from vllm import PoolingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from tenuto.engine.forkserver import EngineProcess, first_line
from tenuto.engine.phases import Phases
from tenuto.engine.types import (
    Canary,
    Constraint,
    EngineSpec,
    EngineStats,
    Prompt,
    Sampling,
    SleepLevel,
    Step,
    Steps,
)
from tenuto.engine.verifier import Verifier
from tenuto.engine.vllm_deltas import DeltaSteps
from tenuto.engine.vllm_errors import constraint_errors, translated
from tenuto.engine.vllm_params import sampling_params, step
from tenuto.engine.vllm_sockets import make_direct
from tenuto.engine.vllm_stats import readings_of
from tenuto.errors import EngineLost, EngineStartError

logger = logging.getLogger(__name__)
T = TypeVar("T")
CANARY_ID = "canary"
CANARY_TEXT = "The capital of France is"
CANARY_TOKENS = 8
# An engine that has not answered so little by then never will. The first answer may compile.
CHECK_S = 60.0
KILLED_S = 10.0


class VllmEngine:
    """`tenuto.engine.base.Engine` over one `AsyncLLM` and its engine process."""

    def __init__(
        self,
        llm: AsyncLLM,
        process: EngineProcess,
        loras: Sequence[LoRARequest],
        verifier: Verifier | None,
        start_phases: Phases,
    ) -> None:
        self._llm = llm
        make_direct(llm.engine_core)
        self._readings = readings_of(llm)
        # vLLM asks a pool of tokenizers for it with each request: 30 us.
        llm.renderer.get_eos_token_id = cache(llm.renderer.get_eos_token_id)
        self._process = process
        self._verifier = verifier
        self._loras = {lora.lora_name: lora for lora in loras}
        self._asleep: SleepLevel | None = None
        self.start_phases: Mapping[str, float] = start_phases

    @property
    def capacity(self) -> int:
        num_running: int = self._llm.vllm_config.scheduler_config.max_num_seqs
        return num_running + max(1, num_running // 8)

    @property
    def can_sleep(self) -> bool:
        enabled: bool = self._llm.vllm_config.model_config.enable_sleep_mode
        return enabled

    async def load_loras(self) -> None:
        """Now, so that a bad adapter is found before the first request for it."""
        for lora in self._loras.values():
            await self._answered(self._llm.add_lora(lora))

    async def require(self, spec: EngineSpec) -> None:
        """Begins to listen to it. Errors: `EngineStartError` when the model cannot do what the
        registry says."""
        self._llm._run_output_handler()
        tasks = await self._answered(self._llm.get_supported_tasks())
        if spec.task not in tasks:
            able = ", ".join(tasks)
            raise EngineStartError(f"model {spec.model_id}: cannot {spec.task}, but: {able}")

    def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> Steps:
        if sampling.n == 1 and not _asks_logprobs(sampling):
            added = partial(self._added, prompt, sampling, request_id)
            return DeltaSteps(self._llm, added, sampling)
        return self._outputs(prompt, sampling, request_id)

    async def _added(self, prompt: Prompt, sampling: Sampling, request_id: str) -> Any:
        """vLLM's collector of the request's outputs."""
        with translated():
            asked = await self._request(prompt, sampling, request_id)
            try:
                return await self._llm.add_request(**asked)
            except asyncio.CancelledError:
                # It is in the engine already, perhaps.
                await self._llm.abort(request_id)
                raise

    async def _outputs(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        with translated():
            asked = await self._request(prompt, sampling, request_id)
            asked["sampling_params"] = asked.pop("params")
            first = True
            async with aclosing(self._llm.generate(**asked)) as outputs:
                async for output in outputs:
                    yield step(output, sampling, first=first)
                    first = False

    async def _request(self, prompt: Prompt, sampling: Sampling, request_id: str) -> dict[str, Any]:
        """The arguments for vLLM."""
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
        return {
            "request_id": request_id,
            "prompt": rendered,
            "params": params,
            "lora_request": lora,
            "priority": sampling.priority,
        }

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

    async def sleep(self, level: SleepLevel) -> None:
        if not self.can_sleep or self.stats().unfinished_requests:
            raise RuntimeError("an engine sleeps only when it can, and without requests")
        with self._fatal("did not fall asleep"):
            # By default vLLM would end a running request as if it had finished.
            await self._answered(self._llm.sleep(level, mode="wait"))
        self._asleep = level

    async def wake(self) -> None:
        with self._fatal("did not wake"):
            if self._asleep == 2:
                await self._reload()
            else:
                await self._answered(self._llm.wake_up())
        self._asleep = None

    async def _reload(self) -> None:
        """Weights first, so that reading them has the room that the KV cache takes afterwards."""
        await self._answered(self._llm.wake_up(["weights"]))
        await self._answered(self._llm.collective_rpc("reload_weights"))
        await self._answered(self._llm.wake_up(["kv_cache"]))
        # Reloading forgets them.
        await self.load_loras()

    async def check(self) -> Canary:
        prompt = Prompt(self._llm.get_tokenizer().encode(CANARY_TEXT))
        try:
            async with asyncio.timeout(CHECK_S):
                if self._llm.vllm_config.model_config.runner_type == "pooling":
                    return Canary(vector=tuple(await self.embed(prompt, None, CANARY_ID)))
                return Canary(token_ids=tuple(await self._greedy(prompt)))
        except TimeoutError:
            raise EngineLost from None

    async def _greedy(self, prompt: Prompt) -> Sequence[int]:
        sampling = Sampling(
            max_tokens=CANARY_TOKENS,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            # Never from the prefix cache: this run is about the weights.
            cache_salt=uuid4().hex,
        )
        async with aclosing(self.generate(prompt, sampling, CANARY_ID)) as steps:
            return [token async for step in steps for token in step.deltas[0].token_ids]

    async def wait_lost(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        # The loop takes one reader per descriptor, and several may wait.
        sentinel = os.dup(self._process.sentinel)
        loop.add_reader(sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(sentinel)
            os.close(sentinel)

    async def _answered(self, call: Awaitable[T]) -> T:
        """vLLM leaves whoever has called an engine that ends waiting for ever."""
        calling = asyncio.ensure_future(call)
        lost = asyncio.create_task(self.wait_lost())
        try:
            await asyncio.wait({calling, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise EngineLost
            return calling.result()
        finally:
            calling.cancel()
            lost.cancel()

    @contextmanager
    def _fatal(self, what: str) -> Iterator[None]:
        """In which state a call that failed leaves the engine nobody knows; vLLM has no type for
        it either."""
        try:
            yield
        except EngineLost:
            raise
        except Exception as error:
            name = self._llm.vllm_config.model_config.served_model_name
            logger.error("model %s: %s: %s", name, what, first_line(error))
            raise EngineLost from None

    def stats(self) -> EngineStats:
        canaries = self._llm.output_processor.external_req_ids.get(CANARY_ID, ())
        unfinished = self._llm.get_num_unfinished_requests()
        return self._readings.read(unfinished - len(canaries))

    async def close(self, drain_s: float) -> None:
        # vLLM's shutdown leaves the iterators of running requests waiting for ever.
        self._llm.output_processor.propagate_error(EngineDeadError())
        if self._llm.output_handler is not None:
            # It would take the end for a failure, and log it.
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._llm.shutdown, drain_s)
        # Only then its memory is free. It was killed, which a busy driver may put off.
        with suppress(TimeoutError):
            async with asyncio.timeout(KILLED_S):
                await self.wait_lost()


def _asks_logprobs(sampling: Sampling) -> bool:
    return sampling.logprobs is not None or sampling.prompt_logprobs is not None
