"""The registry changes under a running server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenuto.engine.fake import FakeBackend
from tenuto.models.pool import Pool
from tenuto.models.registry import chosen_models, load_registry
from tenuto.reload import Reloader
from tests.conftest import make_checkpoint
from tests.models.pools import settled


def write(directory: Path, *models: dict[str, Any]) -> Path:
    make_checkpoint(directory / "checkpoint")
    path = directory / "registry.yaml"
    new = directory / "new.yaml"
    new.write_text(yaml.safe_dump({"models": [{"source": "./checkpoint", **m} for m in models]}))
    return new.rename(path)


@asynccontextmanager
async def running(directory: Path, *models: dict[str, Any]) -> AsyncIterator[Reloader]:
    path = write(directory, *models)
    registry = load_registry(path)
    pool = Pool(registry, FakeBackend())
    await pool.load(chosen_models(registry, None))
    yield Reloader(path, registry, pool, lambda found: chosen_models(found, None))
    await pool.close(0)


def states(reloader: Reloader) -> dict[str, str]:
    return {name: slot.state for name, slot in reloader.pool.slots.items()}


EAGER = {"load": "eager"}


async def test_models_come_and_go(tmp_path: Path) -> None:
    async with running(tmp_path, {"id": "a", **EAGER}, {"id": "b", **EAGER}) as reloader:
        kept = reloader.pool.slots["b"].engine
        write(tmp_path, {"id": "b", **EAGER}, {"id": "c", **EAGER, "aliases": ["nick"]})
        await reloader.reload()
        await settled()
        assert states(reloader) == {"b": "ready", "c": "ready"}
        assert reloader.pool.slots["b"].engine is kept
        assert reloader.registry.find("a") is None
        found = reloader.registry.find("nick")
        assert found is not None
        assert found.entry is reloader.pool.slots["c"].entry


async def test_a_changed_model_is_loaded_anew(tmp_path: Path) -> None:
    async with running(tmp_path, {"id": "a", **EAGER}, {"id": "b"}) as reloader:
        before = reloader.pool.slots["a"].engine
        write(tmp_path, {"id": "a", **EAGER, "max_model_len": 512}, {"id": "b"})
        await reloader.reload()
        await settled()
        assert states(reloader) == {"a": "ready", "b": "cold"}
        assert reloader.pool.slots["a"].engine is not before
        entry = reloader.pool.slots["a"].entry
        assert (await reloader.pool.prompts(entry)).facts.max_model_len == 512


async def test_a_checkpoint_that_has_come_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    far = {"id": "far", "source": "owner/far"}
    async with running(tmp_path, {"id": "a"}, far) as reloader:
        assert states(reloader) == {"a": "cold"}
        snapshot = tmp_path / "hub/models--owner--far/snapshots/abc"
        make_checkpoint(snapshot)
        (snapshot / "model.safetensors").touch()
        refs = tmp_path / "hub/models--owner--far/refs"
        refs.mkdir()
        (refs / "main").write_text("abc")
        await reloader.reload()
        assert states(reloader) == {"a": "cold", "far": "cold"}


@pytest.mark.parametrize("text", ["models: [", "models:\n- id: a\n  sauce: x\n", ""])
async def test_a_broken_file_changes_nothing_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    async with running(tmp_path, {"id": "a", **EAGER}) as reloader:
        before = reloader.pool.slots["a"]
        reloader.path.write_text(text)
        await reloader.reload()
        assert reloader.pool.slots["a"] is before
        assert states(reloader) == {"a": "ready"}
        assert reloader.registry.find("a") is not None
        assert "the registry was not read again: registry.yaml" in caplog.text


async def test_the_file_is_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, {"id": "a"}) as reloader:
        watching = asyncio.create_task(reloader.watch())
        async with asyncio.timeout(20):
            # The watch begins at some moment: what was written before goes unseen.
            for number in range(1000):
                write(tmp_path, {"id": "a"}, {"id": f"b{number}"})
                await asyncio.sleep(0.2)
                if len(states(reloader)) > 1:
                    break
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert "the registry was read again: 1 models added, 0 removed, 0 changed" in caplog.text
