"""Models that do not all have room, and engines that do not take everyone at once."""

import asyncio
import random
from pathlib import Path

import pytest

from tenuto.errors import NotLoaded, Unavailable
from tenuto.models.slot import Lease
from tests.models.pools import HeldBackend, Rig, only, pooled, settled, until

TURN_S = 10.0


async def test_the_least_recently_used_idle_model_makes_room(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", "c", fits=only(2)) as rig:
        await rig.used("a", "b", "a")
        await rig.used("c")
        assert rig.states() == {"a": "ready", "b": "cold", "c": "ready"}
        assert [engine.closed for engine in rig.backend.engines_made] == [0, 1, 0]


async def test_nothing_is_loaded_before_the_other_is_gone(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1)) as rig:
        await rig.used("a")
        rig.backend.engines_made[0].let_go.clear()
        asking = rig.lease("b")
        await settled()
        assert rig.states() == {"a": "unloading", "b": "cold"}
        assert rig.backend.starts == ["a"]
        rig.backend.engines_made[0].let_go.set()
        (await asking).release()


async def test_a_leased_model_stays_until_its_lease_ends(tmp_path: Path) -> None:
    async with pooled(tmp_path, "a", "b", fits=only(1), turn_s=TURN_S) as rig:
        lease = await rig.leased("a")
        asking = rig.lease("b")
        await rig.pass_time(1000)
        assert rig.states() == {"a": "ready", "b": "cold"}
        assert rig.backend.engines_made[0].closed == 0
        lease.release()
        (await asking).release()
        assert rig.states() == {"a": "cold", "b": "ready"}


async def test_a_model_in_steady_use_goes_after_its_turn(tmp_path: Path) -> None:
    """And comes back, for those who had to wait, after the other's."""
    async with pooled(tmp_path, "a", "b", fits=only(1), turn_s=TURN_S) as rig:
        old = await rig.leased("a")
        asking = rig.lease("b")
        await rig.pass_time(TURN_S - 1)
        late = await rig.leased("a")
        await rig.pass_time(1)
        held = rig.lease("a")
        await settled()
        assert not held.done()
        old.release()
        await settled()
        assert rig.state("a") == "ready"
        late.release()
        other = await asking
        await rig.pass_time(TURN_S - 1)
        (await rig.leased("b")).release()
        await rig.pass_time(1)
        other.release()
        (await held).release()
        assert rig.backend.starts == ["a", "b", "a"]


async def test_pinned_models_never_go(tmp_path: Path) -> None:
    pinned = {"id": "a", "pinned": True, "idle_ttl": 5}
    async with pooled(tmp_path, pinned, "b", "c", fits=only(2)) as rig:
        await rig.used("a", "b", "c", "b", "c")
        await rig.pass_time(1000)
        assert rig.states() == {"a": "ready", "b": "cold", "c": "ready"}


async def test_a_model_that_can_never_fit(tmp_path: Path) -> None:
    """It harms no other."""
    async with pooled(tmp_path, "a", "huge", fits=lambda awake, asleep: "huge" not in awake) as rig:
        (await rig.leased("a")).release()
        for _ in range(2):
            with pytest.raises(NotLoaded, match="larger than the memory") as caught:
                await rig.leased("huge")
            assert caught.value.headers["x-should-retry"] == "false"
        assert rig.states() == {"a": "ready", "huge": "failed"}
        assert rig.backend.starts == ["a"]


async def test_idle_models_go_after_their_time(tmp_path: Path) -> None:
    async with pooled(tmp_path, {"id": "a", "idle_ttl": 60}, "b") as rig:
        await rig.pool.load(["a"])
        lease = await rig.leased("a")
        await rig.used("b")
        await rig.pass_time(1000)
        lease.release()
        await rig.pass_time(59)
        assert rig.state("a") == "ready"
        await rig.pass_time(1)
        assert rig.states() == {"a": "cold", "b": "ready"}
        (await rig.leased("a")).release()


async def test_no_more_sequences_than_the_engine_takes(tmp_path: Path) -> None:
    async with pooled(tmp_path, backend=HeldBackend(capacity=4)) as rig:
        first, second = await rig.leased("a", 1), await rig.leased("a", 2)
        waiting = rig.lease("a", 2)
        # It has room for one more, but nobody overtakes.
        behind = rig.lease("a", 1)
        await settled()
        assert not waiting.done()
        assert not behind.done()
        first.release()
        assert (await waiting).engine is second.engine
        await settled()
        assert not behind.done()
        second.release()
        for task in (waiting, behind):
            (await task).release()


async def test_a_request_larger_than_the_engine_runs_alone(tmp_path: Path) -> None:
    async with pooled(tmp_path, backend=HeldBackend(capacity=4)) as rig:
        small = await rig.leased("a")
        large, after = rig.lease("a", 9), rig.lease("a")
        await settled()
        assert not large.done()
        small.release()
        lease = await large
        await settled()
        assert not after.done()
        lease.release()
        (await after).release()


async def test_keys_take_turns(tmp_path: Path) -> None:
    async with pooled(tmp_path, backend=HeldBackend(capacity=1)) as rig:
        running, order = await rig.leased("a"), []

        async def ask(key: str) -> None:
            lease = await rig.lease("a", key=key)
            order.append(key)
            lease.release()

        asking = [asyncio.create_task(ask(key)) for key in "xxxxyyz"]
        await settled()
        running.release()
        await asyncio.gather(*asking)
        assert "".join(order) == "xyzxyxx"


async def test_only_so_many_wait(tmp_path: Path) -> None:
    async with pooled(tmp_path, max_waiting=2, turn_s=TURN_S) as rig:
        rig.backend.told.clear()
        asking = [rig.lease("a") for _ in range(2)]
        await settled()
        with pytest.raises(Unavailable, match="a has 2 requests waiting") as caught:
            await rig.leased("a")
        # Nobody knows yet how long this model takes: a minute is assumed.
        assert caught.value.headers == {"retry-after": "70"}
        asking.pop().cancel()
        await settled()
        asking.append(rig.lease("a"))
        rig.backend.told.set()
        for lease in await asyncio.gather(*asking):
            lease.release()


async def test_only_so_many_wait_for_a_busy_engine(tmp_path: Path) -> None:
    """No load is ahead of them."""
    backend = HeldBackend(capacity=1)
    async with pooled(tmp_path, max_waiting=1, turn_s=TURN_S, backend=backend) as rig:
        lease, asking = await rig.leased("a"), rig.lease("a")
        await settled()
        with pytest.raises(Unavailable, match="a has 1 requests waiting") as caught:
            await rig.leased("a")
        assert caught.value.headers == {"retry-after": "10"}
        lease.release()
        (await asking).release()


async def measured(rig: Rig, load_s: float) -> None:
    """`a` was loaded in that time, then `b` took its place."""
    rig.backend.told.clear()
    asking = rig.lease("a")
    await until(lambda: rig.state("a") == "loading")
    await rig.pass_time(load_s)
    rig.backend.told.set()
    (await asking).release()
    await rig.used("b")


async def test_no_one_waits_for_ever(tmp_path: Path) -> None:
    """When to come back is computed from how long the model took to load."""
    async with pooled(tmp_path, "a", "b", fits=only(1), max_wait_s=0.05, turn_s=TURN_S) as rig:
        loading = asyncio.create_task(rig.pool.load(["a"]))
        rig.backend.told.clear()
        await until(lambda: rig.state("a") == "loading")
        await rig.pass_time(32.5)
        rig.backend.told.set()
        await loading
        await rig.used("b")
        busy = await rig.leased("b")
        with pytest.raises(Unavailable, match=r"a was not ready within 0\.05 s") as caught:
            await rig.leased("a")
        assert caught.value.headers == {"retry-after": "43"}
        assert len(rig.pool.slots["a"].queue) == 0
        busy.release()
        await settled()
        assert rig.backend.starts == ["a", "b"]


async def test_a_load_that_takes_longer_than_anyone_waits(tmp_path: Path) -> None:
    """Who comes meanwhile is told at once; but the first has the model loaded for the next."""
    async with pooled(tmp_path, "a", "b", fits=only(1), max_wait_s=30) as rig:
        await measured(rig, 400)
        rig.backend.told.clear()
        first = rig.lease("a")
        await until(lambda: rig.state("a") == "loading")
        with pytest.raises(Unavailable, match="a takes 400 s more to load") as caught:
            await rig.leased("a")
        assert caught.value.headers == {"retry-after": "410"}
        rig.backend.told.set()
        (await first).release()


async def test_forty_requests_over_three_models(tmp_path: Path) -> None:
    """Some leave; each of the others gets the model that it named, and no lease is lost."""
    chance = random.Random(1)
    backend = HeldBackend(capacity=3)
    async with pooled(tmp_path, "a", "b", "c", fits=only(1), backend=backend) as rig:

        async def ask(model: str) -> None:
            lease: Lease = await rig.lease(model, chance.randint(1, 4))
            try:
                assert lease.engine is backend.engines[model]
                assert [name for name, state in rig.states().items() if state == "ready"] == [model]
                for _ in range(chance.randint(0, 9)):
                    await asyncio.sleep(0)
            finally:
                lease.release()

        asking = [asyncio.create_task(ask(chance.choice("abc"))) for _ in range(40)]
        for leaving in chance.sample(asking, 8):
            await asyncio.sleep(0)
            leaving.cancel()
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(outcome is None for outcome in outcomes) >= 32
        assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
        # All came at once, so each model serves its whole queue in one turn.
        assert len(backend.starts) == 3
