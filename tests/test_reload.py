"""The registry changes under a running server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenuto.engine.fake import FakeBackend
from tenuto.models.pool import Pool
from tenuto.models.registry import Registry, chosen_models, load_registry
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


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a watch waits for its last look."""
    monkeypatch.setattr("tenuto.reload.LOOK_EVERY_MS", 50)


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


@asynccontextmanager
async def watched(reloader: Reloader) -> AsyncIterator[None]:
    watching = asyncio.create_task(reloader.watch())
    yield
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def until_there(reloader: Reloader, *ids: str) -> None:
    await until(lambda: states(reloader).keys() == set(ids))


async def until(condition: Callable[[], bool]) -> None:
    """The watch tells nobody what it has seen."""
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to that")


async def test_the_file_is_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, {"id": "a"}) as reloader, watched(reloader):
        write(tmp_path, {"id": "a"}, {"id": "b"})
        await until_there(reloader, "a", "b")
        assert "the registry was read again: 1 models added, 0 removed, 0 changed" in caplog.text


async def test_a_link_of_another_name_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "links" / "models.yaml"
    link.parent.mkdir()
    async with running(tmp_path / "files", {"id": "a"}) as reloader:
        link.symlink_to(reloader.path)
        linked = Reloader(link, reloader.registry, reloader.pool, reloader.chosen)
        async with watched(linked):
            write(tmp_path / "files", {"id": "b"})
            await until_there(linked, "b")


async def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    """As Kubernetes does it: `registry.yaml` leads to `..data/registry.yaml`, and `..data` to the
    folder that is swapped."""
    link, data = tmp_path / "registry.yaml", tmp_path / "..data"
    async with running(tmp_path / "..first", {"id": "a"}) as reloader:
        data.symlink_to("..first")
        link.symlink_to("..data/registry.yaml")
        linked = Reloader(link, reloader.registry, reloader.pool, reloader.chosen)
        async with watched(linked):
            for name in ("second", "third"):
                write(tmp_path / f"..{name}", {"id": name})
                new = tmp_path / "..data_tmp"
                new.symlink_to(f"..{name}")
                new.rename(data)
                await until_there(linked, name)


async def test_whatever_goes_wrong_the_watch_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, {"id": "a"}) as reloader, watched(reloader):
        reloader.chosen = failing
        write(tmp_path, {"id": "b"})
        await until(lambda: "ZeroDivisionError" in caplog.text)
        assert states(reloader).keys() == {"a"}
        reloader.chosen = lambda found: chosen_models(found, None)
        write(tmp_path, {"id": "c"})
        await until_there(reloader, "c")
    assert "the registry was not read again" in caplog.text


def failing(found: Registry) -> list[str]:
    raise ZeroDivisionError
