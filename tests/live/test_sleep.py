"""Sleep, wake and check on real vLLM. Its CPU worker keeps its memory when it is told to sleep; the
rest is real: the scheduler that pauses, the weights that are read again, the LoRAs that follow."""

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from tenuto.engine.base import Engine, Prompts
from tenuto.engine.lazy import LazyVllm
from tenuto.engine.phases import STEPS
from tenuto.engine.types import Canary, EngineSpec, LoraSpec, Sampling, SleepLevel, TextPrompt
from tenuto.errors import EngineLost
from tests.live.conftest import MODEL
from tests.live.made import RANK, make_encoder, make_lora
from tests.live.test_engine_seam import SPEC, real_backend

pytestmark = [pytest.mark.live, pytest.mark.asyncio(loop_scope="module")]
GREEDY = Sampling(max_tokens=8, temperature=0, ignore_eos=True)
LOST_S = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LazyVllm]:
    with real_backend(tmp_path_factory.mktemp("cache")) as real:
        yield real


def llm_of(engine: Engine) -> Any:
    return getattr(engine, "_llm")  # noqa: B009


def able(engine: Engine) -> Engine:
    """As if the platform could."""
    llm_of(engine).vllm_config.model_config.enable_sleep_mode = True
    return engine


def pid(engine: Engine) -> int:
    process: Any = getattr(engine, "_process")  # noqa: B009
    found: int = process.pid
    return found


async def said(engine: Engine, prompts: Prompts, **fields: Any) -> list[int]:
    prompt = await prompts.text(TextPrompt("The capital"))
    async with aclosing(engine.generate(prompt, replace(GREEDY, **fields), "a")) as steps:
        return [token async for step in steps for token in step.deltas[0].token_ids]


async def lost(engine: Engine, work: Coroutine[Any, Any, Any]) -> None:
    """`work` ends with `EngineLost` when the engine's process ends in the midst of it."""
    os.kill(pid(engine), signal.SIGSTOP)
    working = asyncio.create_task(work)
    waiting = [asyncio.create_task(engine.wait_lost()) for _ in range(2)]
    await asyncio.wait({working}, timeout=0.3)
    assert not working.done()
    os.kill(pid(engine), signal.SIGKILL)
    async with asyncio.timeout(LOST_S):
        with pytest.raises(EngineLost):
            await working
        await asyncio.gather(*waiting)


async def test_a_model_and_its_lora_answer_as_before(backend: LazyVllm, tmp_path: Path) -> None:
    lora = LoraSpec("one", make_lora(tmp_path / "one", seed=1), RANK)
    spec = dataclasses.replace(SPEC, loras=(lora,), sleep=True)
    engine, prompts = able(await backend.engine(spec)), await backend.prompts(spec)
    before = await engine.check(), await said(engine, prompts, lora="one")
    assert before[1] != await said(engine, prompts)
    levels: tuple[SleepLevel, ...] = (1, 2, 1)
    for level in levels:
        await engine.sleep(level)
        await engine.wake()
        # Before its first request, which would load it late.
        assert await llm_of(engine).list_loras() == [1]
        assert (await engine.check(), await said(engine, prompts, lora="one")) == before
    await engine.close(0)


async def test_the_phases_of_a_start(backend: LazyVllm) -> None:
    await backend.imported()
    began = time.monotonic()
    engine = await backend.engine(SPEC)
    phases = engine.start_phases
    assert {"process", *STEPS.values(), "connection", "LoRAs"} <= phases.keys()
    assert 0 < sum(phases.values()) <= time.monotonic() - began
    await engine.close(0)


async def test_an_embedding_model(backend: LazyVllm, tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "encoder")
    spec = EngineSpec("encoder", encoder, task="embed", dtype="float32", max_model_len=128)
    engine = able(await backend.engine(spec))
    before = await engine.check()
    assert len(before.vector) > 1
    await engine.sleep(2)
    await engine.wake()
    assert before.agrees(await engine.check())
    assert not before.agrees(Canary(vector=before.vector[::-1]))
    await engine.close(0)


async def test_what_is_asked_of_an_engine_that_ends(
    backend: LazyVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompts = able(await backend.engine(SPEC)), await backend.prompts(SPEC)
    running = asyncio.create_task(said(engine, prompts, max_tokens=4000))
    while not engine.stats().unfinished_requests:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await engine.sleep(1)
    running.cancel()
    await asyncio.wait({running})
    os.kill(pid(engine), signal.SIGSTOP)
    monkeypatch.setattr("tenuto.engine.vllm_engine.CHECK_S", 0.3)
    with pytest.raises(EngineLost):
        await engine.check()
    await lost(engine, engine.sleep(1))
    await engine.close(0)


async def test_an_engine_that_ends_while_it_wakes(backend: LazyVllm) -> None:
    engine = able(await backend.engine(SPEC))
    await engine.sleep(2)
    await lost(engine, engine.wake())
    await engine.close(0)


async def test_a_wake_that_fails(
    backend: LazyVllm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint has gone: nobody can say what the engine holds now."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in SPEC.checkpoint.iterdir():
        (checkpoint / file.name).symlink_to(file)
    engine = able(await backend.engine(dataclasses.replace(SPEC, checkpoint=checkpoint)))
    await engine.sleep(2)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(EngineLost):
        await engine.wake()
    assert f"model {MODEL}: did not wake: " in caplog.text
    await engine.close(0)
