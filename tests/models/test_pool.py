"""How a model comes to be loaded, who waits for it, and the pool's end."""

import asyncio
from pathlib import Path

import pytest

from tenuto.engine.fake import FakeBackend
from tenuto.errors import CheckpointError, EngineStartError, InternalError, NotLoaded, Unavailable
from tenuto.models.decisions import Ids
from tenuto.models.pool import Pool
from tests.conftest import make_registry, unfinished
from tests.models.pools import HeldBackend, only, pooled, settled, until

TOKENIZER = CheckpointError("no tokenizer in /some/path")


async def test_a_model_is_loaded_when_a_request_waits_for_it(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        await settled()
        assert rig.states() == {"a": "cold", "b": "cold"}
        lease = await rig.leased("a")
        assert lease.engine is rig.backend.engines["a"]
        assert rig.states() == {"a": "ready", "b": "cold"}
        assert unfinished(rig.pool) == {"a": 0}
        lease.release()


async def test_who_waits_for_a_loading_model_joins_its_load(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        rig.backend.told.clear()
        asking = [rig.lease("a") for _ in range(3)]
        await until(lambda: rig.backend.starts == ["a"])
        asking.append(rig.lease("a"))
        await rig.pass_time(7)
        assert rig.state() == "loading"
        assert not any(task.done() for task in asking)
        rig.backend.told.set()
        leases = await asyncio.gather(*asking)
        assert all(lease.engine is rig.backend.engines["a"] for lease in leases)
        assert rig.backend.starts == rig.backend.prompted == ["a"]
        assert rig.pool.slots["a"].load_s == 7
        for lease in leases:
            lease.release()


async def test_lease_is_counted_until_it_is_released(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        first, second = await rig.leased("a"), await rig.leased("a", sequences=3)
        slot = rig.pool.slots["a"]
        assert (slot.leases, slot.sequences) == (2, 4)
        first.release()
        assert (slot.leases, slot.sequences) == (1, 3)
        second.release()


async def test_nothing_is_loaded_for_nobody(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", "c") as rig:
        rig.backend.told.clear()
        first = rig.lease("a")
        await until(lambda: rig.backend.starts == ["a"])
        leaving, staying = rig.lease("b"), rig.lease("c")
        await settled()
        leaving.cancel()
        rig.backend.told.set()
        for task in (first, staying):
            (await task).release()
        await settled()
        assert leaving.cancelled()
        assert rig.backend.starts == ["a", "c"]
        assert rig.state("b") == "cold"


async def test_a_load_goes_on_though_its_only_waiter_has_left(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        rig.backend.told.clear()
        leaving = rig.lease("a")
        await until(lambda: rig.backend.starts == ["a"])
        leaving.cancel()
        rig.backend.told.set()
        await until(lambda: rig.state() == "ready")
        assert rig.pool.slots["a"].leases == 0


async def test_a_lease_granted_in_the_moment_of_leaving_is_given_back(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        slot = rig.pool.slots["a"]
        leaving = rig.lease("a")
        # The owner's turn that grants the lease is over, the waiter has not run since.
        await until(lambda: slot.leases == 1)
        assert not leaving.done()
        leaving.cancel()
        await settled()
        assert leaving.cancelled()
        assert (slot.leases, slot.sequences) == (0, 0)


async def test_the_start_loads_one_model_after_the_other(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        rig.backend.told.clear()
        loading = asyncio.create_task(rig.pool.load(["b", "a"]))
        await until(lambda: rig.backend.starts == ["b"])
        assert not rig.pool.started.is_set()
        rig.backend.told.set()
        await loading
        assert rig.backend.starts == ["b", "a"]
        assert rig.states() == {"a": "ready", "b": "ready"}
        assert rig.pool.started.is_set()


async def test_the_start_ends_with_the_first_error(tmp_path: Path) -> None:
    """Though the pool itself would try again."""
    backend = HeldBackend(errors=[EngineStartError("model a: no memory in /some/path")])
    async with pooled(tmp_path, backend=backend) as rig:
        with pytest.raises(EngineStartError, match="no memory"):
            await rig.pool.load(["a"])
        slot = rig.pool.slots["a"]
        assert (slot.state, slot.reason) == ("failed", "it did not load")
        assert not rig.pool.started.is_set()


async def test_the_start_ends_with_a_model_that_can_never_fit(tmp_path: Path) -> None:
    async with pooled(tmp_path, {"id": "a", "pinned": True}, "b", fits=only(1)) as rig:
        with pytest.raises(NotLoaded, match="b has failed"):
            await asyncio.wait_for(rig.pool.load(["a", "b"]), 5)


async def test_tokenizer_that_does_not_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At start the owner reads why; a client is told no path of the host."""
    async with pooled(tmp_path, backend=HeldBackend(prompt_errors=[TOKENIZER] * 2)) as rig:
        with pytest.raises(CheckpointError, match="no tokenizer in /some/path"):
            await rig.pool.load(["a"])
        slot = rig.pool.slots["a"]
        assert slot.state == "failed"
        assert "/some/path" not in (slot.reason or "")
        with pytest.raises(Unavailable, match="its tokenizer did not load") as caught:
            await rig.pool.prompts(slot.entry)
        assert "/some/path" not in caught.value.message
        assert "no tokenizer in /some/path" in caplog.text
        assert slot.facts() is None


async def test_prompts_are_made_once_and_without_an_engine(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        slot = rig.pool.slots["a"]
        assert slot.facts() is None
        first, second = await asyncio.gather(*(rig.pool.prompts(slot.entry) for _ in range(2)))
        assert first is second
        assert rig.backend.prompted == ["a"]
        assert slot.facts() is first.facts
        assert (slot.state, rig.backend.starts) == ("cold", [])


@pytest.mark.parametrize("error", [TOKENIZER, RuntimeError("odd")])
async def test_prompts_are_tried_again_after_a_failure(tmp_path: Path, error: Exception) -> None:
    async with pooled(tmp_path, backend=HeldBackend(prompt_errors=[error])) as rig:
        entry = rig.pool.slots["a"].entry
        with pytest.raises((Unavailable, RuntimeError)):
            await rig.pool.prompts(entry)
        await rig.pool.prompts(entry)
        assert rig.backend.prompted == ["a", "a"]


async def test_a_client_who_leaves_does_not_stop_the_others_prompts(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        entry = rig.pool.slots["a"].entry
        leaving = asyncio.create_task(rig.pool.prompts(entry))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await rig.pool.prompts(entry)).facts.max_model_len == 2048
        assert leaving.cancelled()
        assert rig.backend.prompted == ["a"]


async def test_models_without_a_checkpoint_have_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    registry = make_registry(tmp_path, [{"id": "demo"}, {"id": "far", "source": "owner/far"}])
    assert Pool(registry, FakeBackend()).slots.keys() == {"demo"}


async def test_closing_ends_every_engine_once(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        await rig.pool.load(["a", "b"])
        await rig.pool.close(0)
        await rig.pool.close(0)
        assert [engine.closed for engine in rig.backend.engines_made] == [1, 1]
        assert rig.states() == {"a": "cold", "b": "cold"}
        with pytest.raises(Unavailable, match="shutting down"):
            await rig.leased("a")


async def test_closing_ends_every_wait(tmp_path: Path) -> None:
    """For a model that is being loaded, and for one that cannot be loaded before."""
    async with pooled(tmp_path, "a", "b") as rig:
        rig.backend.told.clear()
        asking = [rig.lease("a"), rig.lease("a"), rig.lease("b")]
        await until(lambda: rig.backend.starts == ["a"])
        await rig.pool.close(0)
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert "shutting down" in outcome.message
            assert "x-should-retry" not in outcome.headers


async def test_closing_ends_an_engine_that_has_just_started(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        rig.backend.told.clear()
        asking = rig.lease("a")
        await until(lambda: rig.backend.starts == ["a"])
        work = rig.pool.slots["a"].work
        assert work is not None
        rig.backend.told.set()
        # The load is over, and its owner has not seen it.
        await until(work.done)
        assert rig.state() == "loading"
        await rig.pool.close(0)
        assert [engine.closed for engine in rig.backend.engines_made] == [1]
        with pytest.raises(Unavailable, match="shutting down"):
            await asking


async def test_closing_awaits_a_model_that_is_being_unloaded(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1)) as rig:
        await rig.used("a")
        engine = rig.backend.engines_made[0]
        engine.let_go.clear()
        asking = rig.lease("b")
        await until(lambda: rig.state("a") == "unloading")
        closing = asyncio.create_task(rig.pool.close(0))
        await settled()
        assert not closing.done()
        engine.let_go.set()
        await closing
        assert engine.closed == 1
        with pytest.raises(Unavailable, match="shutting down"):
            await asking


async def test_closing_during_the_start_is_no_failed_start(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        rig.backend.told.clear()
        loading = asyncio.create_task(rig.pool.load(["a", "b"]))
        await until(lambda: rig.backend.starts == ["a"])
        await rig.pool.close(0)
        with pytest.raises(asyncio.CancelledError):
            await loading


async def test_closing_ends_the_wait_for_prompts(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        entry = rig.pool.slots["a"].entry
        asking = asyncio.create_task(rig.pool.prompts(entry))
        await asyncio.sleep(0)
        await rig.pool.close(0)
        with pytest.raises(Unavailable, match="shutting down"):
            await asking
        with pytest.raises(Unavailable, match="shutting down"):
            await rig.pool.prompts(entry)


async def test_an_engine_that_does_not_close_does_not_keep_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        await rig.used("a", "b")
        rig.backend.engines_made[0].close_error = RuntimeError("stuck")
        await rig.pool.close(0)
        assert [engine.closed for engine in rig.backend.engines_made] == [1, 1]
        assert "stuck" in caplog.text


async def test_a_fault_of_the_owner_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def fits(awake: Ids, asleep: Ids) -> bool:
        if broken:
            raise ZeroDivisionError
        return True

    async with pooled(tmp_path, fits=fits) as rig:
        for _ in range(2):
            with pytest.raises(InternalError):
                await rig.leased("a")
        assert "ZeroDivisionError" in caplog.text
        broken = False
        (await rig.leased("a")).release()
