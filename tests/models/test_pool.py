"""The state of each model, and the leases that requests hold."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tenuto.engine.fake import FakeBackend, FakeEngine, FakePrompts
from tenuto.engine.types import EngineSpec
from tenuto.errors import CheckpointError, EngineStartError, Unavailable
from tenuto.models.pool import Pool
from tests.conftest import make_registry


@dataclass
class HeldBackend(FakeBackend):
    """Starts engines when told to; notes which prompts were made and which engines closed."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    prompted: list[str] = field(default_factory=list)
    broken_tokenizer: bool = False

    async def prompts(self, spec: EngineSpec) -> FakePrompts:
        self.prompted.append(spec.model_id)
        if self.broken_tokenizer:
            raise CheckpointError("no tokenizer in /some/path")
        return await super().prompts(spec)

    async def engine(self, spec: EngineSpec) -> FakeEngine:
        self.starting.set()
        await self.told.wait()
        return await super().engine(spec)


def make_pool(directory: Path, backend: FakeBackend, *ids: str) -> Pool:
    return Pool(make_registry(directory, [{"id": name} for name in ids or ("demo",)]), backend)


async def test_model_that_was_not_asked_for_is_cold(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, FakeBackend())
    with pytest.raises(Unavailable, match="demo is not loaded") as caught:
        pool.lease(pool.slots["demo"].entry)
    assert caught.value.headers == {"retry-after": "60", "x-should-retry": "false"}
    assert pool.unfinished() == {}


async def test_loading_then_ready(tmp_path: Path) -> None:
    backend = HeldBackend()
    pool = make_pool(tmp_path, backend, "demo", "second")
    loading = asyncio.create_task(pool.load(["demo", "second"]))
    await backend.starting.wait()
    assert {slot.state for slot in pool.slots.values()} == {"loading"}
    with pytest.raises(Unavailable, match="demo is being loaded"):
        pool.lease(pool.slots["demo"].entry)
    backend.told.set()
    await loading
    assert {slot.state for slot in pool.slots.values()} == {"ready"}
    assert pool.unfinished() == {"demo": 0, "second": 0}
    await pool.close(0)


async def test_lease_is_counted_until_it_is_released(tmp_path: Path) -> None:
    backend = FakeBackend()
    pool = make_pool(tmp_path, backend)
    await pool.load(["demo"])
    slot = pool.slots["demo"]
    first, second = pool.lease(slot.entry), pool.lease(slot.entry)
    assert first.engine is backend.engines["demo"]
    assert slot.leases == 2
    first.release()
    second.release()
    assert slot.leases == 0
    await pool.close(0)


async def test_engine_that_does_not_start(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, FakeBackend(fails=frozenset({"demo"})))
    with pytest.raises(EngineStartError, match="told to fail"):
        await pool.load(["demo"])
    slot = pool.slots["demo"]
    assert (slot.state, slot.reason) == ("failed", "it did not load")
    with pytest.raises(Unavailable, match="demo has failed"):
        pool.lease(slot.entry)


async def test_tokenizer_that_does_not_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At start the owner reads why; a client is told no path of the host."""
    backend = HeldBackend(broken_tokenizer=True)
    pool = make_pool(tmp_path, backend)
    with pytest.raises(CheckpointError, match="no tokenizer in /some/path"):
        await pool.load(["demo"])
    assert pool.slots["demo"].state == "failed"
    assert "/some/path" not in (pool.slots["demo"].reason or "")
    with pytest.raises(Unavailable, match="its tokenizer did not load"):
        await pool.prompts(pool.slots["demo"].entry)
    assert "no tokenizer in /some/path" in caplog.text
    assert pool.slots["demo"].facts() is None


async def test_prompts_are_made_once_and_without_an_engine(tmp_path: Path) -> None:
    backend = HeldBackend()
    pool = make_pool(tmp_path, backend)
    slot = pool.slots["demo"]
    assert slot.facts() is None
    first, second = await asyncio.gather(pool.prompts(slot.entry), pool.prompts(slot.entry))
    assert first is second
    assert backend.prompted == ["demo"]
    assert slot.facts() is first.facts
    assert slot.state == "cold"


async def test_prompts_are_tried_again_after_a_failure(tmp_path: Path) -> None:
    backend = HeldBackend(broken_tokenizer=True)
    pool = make_pool(tmp_path, backend)
    entry = pool.slots["demo"].entry
    with pytest.raises(Unavailable) as caught:
        await pool.prompts(entry)
    assert "/some/path" not in caught.value.message
    backend.broken_tokenizer = False
    await pool.prompts(entry)
    assert backend.prompted == ["demo", "demo"]


async def test_a_client_who_leaves_does_not_stop_the_others_prompts(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, FakeBackend())
    entry = pool.slots["demo"].entry
    leaving = asyncio.create_task(pool.prompts(entry))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await pool.prompts(entry)).facts.max_model_len == 2048


async def test_engine_that_ends_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend()
    pool = make_pool(tmp_path, backend)
    await pool.load(["demo"])
    slot = pool.slots["demo"]
    assert slot.watch is not None
    backend.engines["demo"].lose()
    await slot.watch
    assert (slot.state, slot.reason) == ("failed", "its engine process ended")
    assert "demo" in caplog.text
    assert pool.unfinished() == {}
    with pytest.raises(Unavailable, match="has failed"):
        pool.lease(slot.entry)


async def test_closing_ends_every_engine(tmp_path: Path) -> None:
    backend = FakeBackend()
    pool = make_pool(tmp_path, backend, "demo", "second")
    await pool.load(["demo", "second"])
    await pool.close(0)
    for engine in backend.engines.values():
        await asyncio.wait_for(engine.wait_lost(), 5)
    assert {slot.state for slot in pool.slots.values()} == {"cold"}
    with pytest.raises(Unavailable, match="is not loaded"):
        pool.lease(pool.slots["demo"].entry)


async def test_models_without_a_checkpoint_have_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    registry = make_registry(tmp_path, [{"id": "demo"}, {"id": "far", "source": "owner/far"}])
    assert Pool(registry, FakeBackend()).slots.keys() == {"demo"}
