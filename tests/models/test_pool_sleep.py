"""Models that sleep and wake, and those that their owner sends away or changes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tenuto.engine.types import Canary
from tenuto.errors import Unavailable
from tests.conftest import make_registry
from tests.models.pools import ClosableEngine, HeldBackend, Rig, only, pooled, settled, until


def able() -> HeldBackend:
    return HeldBackend(can_sleep=True)


def engine_of(rig: Rig, model: str) -> ClosableEngine:
    engine = rig.backend.engines[model]
    assert isinstance(engine, ClosableEngine)
    return engine


async def test_models_take_turns_asleep(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1), backend=able()) as rig:
        await rig.used("a", "b")
        assert rig.states() == {"a": "asleep", "b": "ready"}
        assert engine_of(rig, "a").asleep == 1
        await rig.used("a", "b", "a")
        assert rig.states() == {"a": "ready", "b": "asleep"}
        assert rig.backend.starts == ["a", "b"]
        assert engine_of(rig, "a").asleep is None
        assert engine_of(rig, "b").slept == [1, 1]
        assert rig.pool.slots["a"].wake_s == 0


async def test_a_sleep_level_of_the_registry(tmp_path: Path) -> None:
    rows: list[str | dict[str, Any]] = [
        {"id": "deep", "sleep_level": 2},
        {"id": "never", "sleep_level": 0},
        "other",
    ]
    async with pooled(tmp_path, *rows, fits=only(1), backend=able()) as rig:
        await rig.used("deep", "never", "other")
        assert rig.states() == {"deep": "asleep", "never": "cold", "other": "ready"}
        assert engine_of(rig, "deep").asleep == 2


async def test_without_host_memory_the_longest_unused_sleeper_goes(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", "c", fits=only(1, sleeping=1), backend=able()) as rig:
        await rig.used("a", "b", "c")
        assert rig.states() == {"a": "cold", "b": "asleep", "c": "ready"}


async def test_a_model_with_leases_never_sleeps(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1), backend=able(), turn_s=10) as rig:
        busy = await rig.leased("a")
        waiting = rig.lease("b")
        await rig.pass_time(11)
        assert rig.state("a") == "ready"
        busy.release()
        (await waiting).release()
        assert rig.state("a") == "asleep"


async def test_a_wake_that_garbles_the_model_loads_it_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1), backend=able()) as rig:
        await rig.used("a", "b")
        garbled = engine_of(rig, "a")
        garbled.canary = Canary(token_ids=(9, 9, 9))
        lease = await rig.leased("a")
        assert lease.engine is not garbled
        assert garbled.closed == 1
        assert rig.backend.starts == ["a", "b", "a"]
        assert rig.pool.slots["a"].failed_wakes == 1
        assert "a: answered otherwise after its sleep" in caplog.text
        lease.release()


@pytest.mark.parametrize("when", ["asleep", "waking"])
async def test_a_sleeper_whose_process_ends(tmp_path: Path, when: str) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1), backend=able()) as rig:
        await rig.used("a", "b")
        sleeper = engine_of(rig, "a")
        if when == "asleep":
            sleeper.lose()
            await until(lambda: rig.state("a") == "cold")
            assert rig.backend.starts == ["a", "b"]
            waiting = rig.lease("a")
        else:
            sleeper.go.clear()
            waiting = rig.lease("a")
            await until(lambda: rig.state("a") == "waking")
            sleeper.lose()
            await until(lambda: rig.state("a") == "failed")
            await rig.pass_time(2)
        (await waiting).release()
        assert rig.backend.starts == ["a", "b", "a"]


async def test_closing_ends_sleepers_too(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1), backend=able()) as rig:
        await rig.used("a", "b")
        await rig.pool.close(0)
        assert [engine.closed for engine in rig.backend.engines_made] == [1, 1]


async def test_the_owner_loads_and_dismisses(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", backend=able()) as rig:
        rig.pool.want("a")
        await until(lambda: rig.state() == "ready")
        busy = await rig.leased("a")
        rig.pool.dismiss("a", "asleep")
        late = rig.lease("a")
        await settled()
        assert rig.state() == "ready"
        assert not late.done()
        busy.release()
        # It slept, and was woken for the one that came meanwhile.
        (await late).release()
        assert engine_of(rig, "a").slept == [1]
        rig.pool.dismiss("a", "asleep")
        await until(lambda: rig.state() == "asleep")
        rig.pool.dismiss("a", "cold")
        await until(lambda: rig.state() == "cold")
        rig.pool.dismiss("a", "cold")
        rig.pool.want("a")
        await until(lambda: rig.state() == "ready")


async def test_a_dismissed_model_that_is_loading_goes_afterwards(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        rig.backend.told.clear()
        rig.pool.want("a")
        await until(lambda: rig.state() == "loading")
        rig.pool.dismiss("a", "asleep")
        rig.backend.told.set()
        await until(lambda: rig.state() == "cold")
        assert rig.backend.engines_made[0].closed == 1


async def test_the_owner_tries_a_failed_model_again(tmp_path: Path) -> None:
    async with pooled(tmp_path, backend=HeldBackend(errors=[RuntimeError("no")] * 3)) as rig:
        waiting = rig.lease("a")
        for _ in range(3):
            await rig.pass_time(5)
        with pytest.raises(Unavailable, match="has failed"):
            await waiting
        rig.pool.want("a")
        await until(lambda: rig.state() == "ready")


async def test_a_changed_entry_is_loaded_anew_when_its_requests_have_ended(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        await rig.used("a", "b")
        busy, before = await rig.leased("a"), rig.pool.slots["a"].entry
        kept = rig.pool.slots["b"].entry
        rows = [{"id": "a", "license": "other"}, {"id": "c"}]
        changed, added = make_registry(tmp_path, rows).present()
        rig.pool.adopt([changed, kept, added])
        for model in (before, changed):
            waiting = asyncio.create_task(rig.pool.lease(model))
            await settled()
            if model is before:
                with pytest.raises(Unavailable, match="was changed"):
                    await waiting
        assert not waiting.done()
        (await rig.leased("b")).release()
        busy.release()
        (await waiting).release()
        assert rig.backend.starts == ["a", "b", "a"]
        assert rig.states() == {"a": "ready", "b": "ready", "c": "cold"}
        assert rig.pool.slots["a"].entry is changed
        (await rig.leased("c")).release()


async def test_a_removed_entry_goes_when_its_requests_have_ended(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        busy, removed = await rig.leased("a"), rig.pool.slots["a"].entry
        rig.pool.adopt([rig.pool.slots["b"].entry])
        with pytest.raises(Unavailable, match="was changed"):
            await rig.pool.lease(removed)
        await settled()
        assert rig.states() == {"a": "ready", "b": "cold"}
        busy.release()
        await until(lambda: rig.states() == {"b": "cold"})
        assert rig.backend.engines_made[0].closed == 1


async def test_an_entry_that_changes_while_it_loads_is_loaded_once_more(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        rig.backend.told.clear()
        waiting = rig.lease("a")
        await until(lambda: rig.backend.starts == ["a"])
        (entry,) = make_registry(tmp_path, [{"id": "a", "license": "other"}]).present()
        rig.pool.adopt([entry])
        with pytest.raises(Unavailable, match="was changed"):
            await waiting
        rig.backend.told.set()
        await until(lambda: rig.backend.starts == ["a", "a"])
        await until(lambda: rig.state() == "ready")
        assert rig.backend.prompted == ["a", "a"]


async def test_a_sleeper_beside_a_pinned_model_is_let_go_before_it_is_refused(
    tmp_path: Path,
) -> None:
    rows: list[str | dict[str, Any]] = ["a", {"id": "p", "pinned": True}]
    async with pooled(tmp_path, *rows, fits=only(1), backend=able()) as rig:
        await rig.used("a", "p")
        assert rig.states() == {"a": "asleep", "p": "ready"}
        with pytest.raises(Unavailable, match="larger than the memory"):
            await rig.leased("a")
        assert rig.backend.engines_made[0].closed == 1
        assert rig.pool.slots["a"].engine is None


@pytest.mark.parametrize("stays", [True, False])
async def test_an_entry_that_changes_while_its_model_falls_asleep(
    tmp_path: Path, stays: bool
) -> None:
    async with pooled(tmp_path, "a", backend=able()) as rig:
        await rig.used("a")
        engine = engine_of(rig, "a")
        engine.go.clear()
        rig.pool.dismiss("a", "asleep")
        await until(lambda: rig.state() == "suspending")
        changed = make_registry(tmp_path, [{"id": "a", "license": "other"}]).present()
        rig.pool.adopt(changed if stays else [])
        engine.go.set()
        if stays:
            await until(lambda: rig.state() == "ready" and engine.closed == 1)
            assert rig.backend.starts == ["a", "a"]
        else:
            await until(lambda: not rig.pool.slots and engine.closed == 1)


async def test_a_change_of_a_cold_model_costs_no_load(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        (entry,) = make_registry(tmp_path, [{"id": "a", "license": "other"}]).present()
        rig.pool.adopt([entry])
        await settled()
        (await rig.leased("a")).release()
        assert rig.backend.starts == ["a"]


async def test_unloading_twice_costs_no_load(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        rig.backend.engines_made[0].let_go.clear()
        rig.pool.dismiss("a", "cold")
        await until(lambda: rig.state() == "unloading")
        rig.pool.dismiss("a", "cold")
        rig.backend.engines_made[0].let_go.set()
        await until(lambda: rig.state() == "cold")
        (await rig.leased("a")).release()
        assert rig.backend.starts == ["a", "a"]


async def test_who_asks_for_a_load_does_not_keep_the_old_engine(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        busy = await rig.leased("a")
        (entry,) = make_registry(tmp_path, [{"id": "a", "license": "other"}]).present()
        rig.pool.adopt([entry])
        # Before the owner's next turn, and after it, nobody gets the old engine any more.
        waiting = asyncio.create_task(rig.pool.lease(entry))
        rig.pool.want("a")
        await settled()
        assert not waiting.done()
        busy.release()
        lease = await waiting
        assert lease.engine is rig.backend.engines_made[1]
        lease.release()


async def test_a_wake_waits_for_what_was_lost(tmp_path: Path) -> None:
    """Its memory may not be free yet."""
    async with pooled(tmp_path, "a", "b", fits=only(1), backend=able()) as rig:
        await rig.used("a", "b")
        lost = engine_of(rig, "b")
        lost.let_go.clear()
        waiting = rig.lease("a")
        rig.pool.slots["b"].is_lost = True
        lost.lose()
        await until(lambda: rig.state("a") == "waking")
        await settled()
        assert engine_of(rig, "a").asleep == 1
        lost.let_go.set()
        (await waiting).release()


async def test_a_lost_model_that_was_to_go_stays_away(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        busy = await rig.leased("a")
        rig.pool.dismiss("a", "cold")
        await settled()
        engine_of(rig, "a").lose()
        await until(lambda: rig.state() == "failed")
        busy.release()
        await rig.pass_time(100)
        assert rig.backend.starts == ["a"]
