"""Engines that do not start, and engines that end by themselves."""

import asyncio
from pathlib import Path

import pytest

from tenuto.errors import EngineLost, EngineStartError, NotLoaded
from tenuto.models.slot import Lease
from tenuto.models.transitions import FIRST_BACK_OFF_S, MAX_STARTS, STABLE_S
from tests.conftest import unfinished
from tests.models.pools import ClosableEngine, HeldBackend, Rig, pooled, settled, until

NO_MEMORY = EngineStartError("model a: did not start: no memory in /some/path")


def failing(*errors: BaseException) -> HeldBackend:
    return HeldBackend(errors=list(errors))


def gone(caught: pytest.ExceptionInfo[NotLoaded]) -> None:
    assert caught.value.status == 503
    assert caught.value.headers["x-should-retry"] == "false"
    assert "/some/path" not in caught.value.message


async def lose(rig: Rig, model: str = "a") -> ClosableEngine:
    engine = rig.backend.engines[model]
    assert isinstance(engine, ClosableEngine)
    engine.lose()
    await settled()
    return engine


@pytest.mark.parametrize(
    "error",
    [NO_MEMORY, RuntimeError("odd"), asyncio.CancelledError()],
    ids=["told", "unexpected", "cancelled"],
)
async def test_who_waits_is_served_by_the_second_start(
    tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with pooled(tmp_path, backend=failing(error)) as rig:
        asking = [rig.lease("a"), rig.lease("a")]
        await settled()
        slot = rig.pool.slots["a"]
        assert (slot.state, slot.reason) == ("failed", "it did not load")
        assert "model a: did not start" in caplog.text
        asking.append(rig.lease("a"))
        await rig.pass_time(FIRST_BACK_OFF_S / 2)
        assert rig.backend.starts == ["a"]
        assert not any(task.done() for task in asking)
        await rig.pass_time(FIRST_BACK_OFF_S / 2)
        for lease in await asyncio.gather(*asking):
            lease.release()
        assert (slot.state, slot.reason) == ("ready", None)
        assert rig.backend.starts == ["a", "a"]


async def test_three_failed_starts_are_enough(tmp_path: Path) -> None:
    async with pooled(tmp_path, backend=failing(*[NO_MEMORY] * MAX_STARTS)) as rig:
        asking = rig.lease("a")
        await settled()
        for attempt in range(1, MAX_STARTS):
            await rig.pass_time(FIRST_BACK_OFF_S * 2 ** (attempt - 1) - 0.25)
            assert len(rig.backend.starts) == attempt
            await rig.pass_time(0.25)
        with pytest.raises(NotLoaded, match="a has failed and is not served") as caught:
            await asking
        gone(caught)
        await rig.pass_time(1e6)
        with pytest.raises(NotLoaded, match="it did not load") as caught:
            await rig.leased("a")
        gone(caught)
        with pytest.raises(NotLoaded):
            await asyncio.wait_for(rig.pool.load(["a"]), 5)
        assert len(rig.backend.starts) == MAX_STARTS


async def test_failures_before_a_good_start_are_forgotten(tmp_path: Path) -> None:
    async with pooled(tmp_path, {"id": "a", "idle_ttl": 5}) as rig:
        for _ in range(MAX_STARTS):
            rig.backend.errors.append(NO_MEMORY)
            asking = rig.lease("a")
            await rig.pass_time(FIRST_BACK_OFF_S)
            (await asking).release()
            await rig.pass_time(5)
            assert rig.state() == "cold"


async def test_nobody_starts_it_again_for_nobody(tmp_path: Path) -> None:
    async with pooled(tmp_path, backend=failing(NO_MEMORY)) as rig:
        leaving = rig.lease("a")
        await settled()
        leaving.cancel()
        await rig.pass_time(1000)
        assert (rig.state(), rig.backend.starts) == ("failed", ["a"])
        (await rig.leased("a")).release()


async def test_a_failing_model_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", backend=failing(NO_MEMORY)) as rig:
        asking = rig.lease("a")
        await settled()
        (await rig.leased("b")).release()
        assert not asking.done()
        await rig.pass_time(FIRST_BACK_OFF_S)
        (await asking).release()


async def test_a_lost_engine_is_started_again_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pooled(tmp_path, "a", "b") as rig:
        await rig.used("b", "a")
        other = await rig.leased("b")
        lost = await lose(rig)
        slot = rig.pool.slots["a"]
        assert (slot.state, slot.reason) == ("failed", "its engine process ended")
        assert "model a: its engine process ended" in caplog.text
        assert unfinished(rig.pool) == {"b": 0}
        await rig.pass_time(FIRST_BACK_OFF_S)
        assert rig.states() == {"a": "ready", "b": "ready"}
        assert rig.backend.starts == ["b", "a", "a"]
        assert slot.engine is not lost
        assert lost.closed == 1
        assert other.engine is rig.backend.engines["b"]
        other.release()


async def test_who_asks_after_a_loss_waits_for_the_next_engine(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        lost = await lose(rig)
        asking = rig.lease("a")
        await settled()
        assert not asking.done()
        await rig.pass_time(FIRST_BACK_OFF_S)
        lease = await asking
        assert lease.engine is not lost
        lease.release()


async def test_a_crash_loop_ends(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        for _ in range(MAX_STARTS):
            await lose(rig)
            await rig.pass_time(STABLE_S / 2)
        assert rig.state() == "failed"
        with pytest.raises(NotLoaded, match="its engine process ended") as caught:
            await rig.leased("a")
        gone(caught)
        assert len(rig.backend.starts) == MAX_STARTS


async def test_rare_losses_are_no_crash_loop(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        for _ in range(3 * MAX_STARTS):
            await rig.pass_time(STABLE_S + 1)
            await lose(rig)
            await rig.pass_time(FIRST_BACK_OFF_S)
        assert rig.state() == "ready"


def hears_of_the_loss(lease: Lease) -> None:
    """As a request does, by the error of its engine."""
    with pytest.raises(EngineLost), lease.watched():
        raise EngineLost
    lease.release()


async def test_nobody_gets_an_engine_of_which_a_request_heard_that_it_is_lost(
    tmp_path: Path,
) -> None:
    """Its process may end a moment later, or not at all."""
    async with pooled(tmp_path) as rig:
        early, late = await rig.leased("a"), await rig.leased("a")
        hears_of_the_loss(early)
        # At once, before the owner has had a turn.
        assert rig.pool.slots["a"].granted(1) is None
        asking = rig.lease("a")
        await rig.pass_time(FIRST_BACK_OFF_S)
        lease = await asking
        assert lease.engine is not early.engine
        assert rig.backend.engines_made[0].closed == 1
        # One more who hears of the old engine's loss does not end the new one.
        hears_of_the_loss(late)
        await settled()
        assert rig.backend.engines_made[1].closed == 0
        lease.release()


async def test_a_lost_engine_is_closed_before_another_starts(tmp_path: Path) -> None:
    """It may have its memory until then."""
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        engine = rig.backend.engines_made[0]
        engine.let_go.clear()
        await lose(rig)
        await rig.pass_time(FIRST_BACK_OFF_S)
        assert (rig.state(), rig.backend.starts) == ("loading", ["a"])
        engine.let_go.set()
        await until(lambda: rig.state() == "ready")


async def test_a_lost_engine_that_does_not_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        rig.backend.engines_made[0].close_error = RuntimeError("stuck")
        await lose(rig)
        await rig.pass_time(FIRST_BACK_OFF_S)
        assert rig.state() == "ready"
        assert "stuck" in caplog.text


async def test_an_engine_that_does_not_unload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pooled(tmp_path, {"id": "a", "idle_ttl": 5}) as rig:
        await rig.used("a")
        rig.backend.engines_made[0].close_error = RuntimeError("stuck")
        await rig.pass_time(5)
        assert rig.state() == "cold"
        assert "stuck" in caplog.text


async def test_an_engine_lost_while_the_pool_is_closed(tmp_path: Path) -> None:
    async with pooled(tmp_path) as rig:
        await rig.used("a")
        engine = rig.backend.engines_made[0]
        engine.let_go.clear()
        await lose(rig)
        closing = asyncio.create_task(rig.pool.close(0))
        await settled()
        assert not closing.done()
        engine.let_go.set()
        await closing
        assert engine.closed == 1
