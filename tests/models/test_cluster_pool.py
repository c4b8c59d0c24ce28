"""A front end's models on a scripted cluster."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import BadRequest, EngineLost, EngineStartError, NotLoaded, Unavailable
from tenuto.models import cluster_pool
from tenuto.models.cluster_pool import MOVING_S, RETIRE_AFTER_S, name_of
from tenuto.models.waiting import Asker
from tests.conftest import make_adapter, make_checkpoint, make_registry
from tests.models.clusters import rigged
from tests.models.pools import settled

A: dict[str, Any] = {"id": "a", "load": "eager"}
SOON_S = 0.001
DOWN = Unavailable("the cluster does not answer")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    for pace in ("LOOK_EVERY_S", "LOOK_SOON_S"):
        monkeypatch.setattr(cluster_pool, pace, SOON_S)


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a second time by itself."""
    for pace in ("LOOK_EVERY_S", "LOOK_SOON_S"):
        monkeypatch.setattr(cluster_pool, pace, 600)


async def test_models_are_deployed_as_the_registry_says(tmp_path: Path) -> None:
    rows = A, {"id": "b", "replicas": {"max": 3}, "idle_ttl": 7, "max_model_len": 64}
    async with rigged(tmp_path, *rows) as rig:
        await rig.loaded("a")
        assert rig.pool.started.is_set()
        assert rig.pool.is_ready(rig.entry("a"))
        [deployed] = rig.cluster.deploys
        b = deployed[rig.name("b")]
        assert (b.spec.model_id, b.spec.max_model_len) == ("b", 64)
        assert (b.scale.min_replicas, b.scale.max_replicas, b.scale.idle_s) == (0, 3, 7)
        lease = await rig.pool.lease(rig.entry("b"))
        assert lease.engine is rig.cluster.engines[rig.name("b")]
        rig.clock.now += 5
        lease.release()
        assert rig.pool.slots["b"].used_at == rig.clock.now


async def test_nothing_is_deployed_twice(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        await rig.cluster.looked(5)
        assert rig.cluster.attempts == 1


async def test_load_waits_until_it_is_ready(tmp_path: Path) -> None:
    async with rigged(tmp_path, A, is_idle=True) as rig:
        loading = asyncio.create_task(rig.pool.load(["a"]))
        for state in ("cold", "loading"):
            rig.cluster.found[rig.name()] = state, None
            await rig.cluster.looked()
            assert not loading.done()
            assert rig.pool.slots["a"].state == state
            assert not rig.pool.is_ready(rig.entry())
        rig.cluster.found[rig.name()] = "ready", None
        await asyncio.wait_for(loading, 5)
        assert rig.backend.prompted == ["a"]


async def test_a_model_that_starts_on_demand_is_woken_when_it_is_to_be_loaded(
    tmp_path: Path,
) -> None:
    """Its cluster would start none, and the server would wait for ever."""
    async with rigged(tmp_path, {"id": "a"}, {"id": "b"}, is_idle=True) as rig:
        await rig.loaded("a")
        assert rig.pool.is_ready(rig.entry("a"))
        assert not rig.pool.is_ready(rig.entry("b"))


async def test_load_says_what_failed(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        rig.cluster.found[rig.name()] = "failed", "it did not load"
        with pytest.raises(EngineStartError, match="model a: it did not load"):
            await rig.loaded("a")
        assert not rig.pool.started.is_set()


async def test_a_model_is_woken_once_it_is_deployed(tmp_path: Path) -> None:
    async with rigged(tmp_path, {"id": "a"}, is_idle=True) as rig:
        rig.pool.want("a")
        await rig.cluster.looked()
        rig.pool.want("a")
        await rig.cluster.looked()
        assert rig.cluster.engines[rig.name()].woken == 2


async def test_a_model_that_does_not_wake_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        rig.cluster.engines[rig.name()].wake_error = Unavailable("not ready within 5 s")
        rig.pool.want("a")
        await settled()
        assert "not woken: not ready within 5 s" in caplog.text


async def test_a_changed_entry_keeps_serving(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        before = rig.entry()
        lease = await rig.pool.lease(before)
        await rig.adopt({**A, "max_model_len": 32})
        after = rig.entry()
        assert name_of(after) == name_of(before)
        assert rig.cluster.deploys[-1][rig.name()].spec.max_model_len == 32
        assert rig.pool.is_ready(after)
        # A request keeps the entry with which it began.
        old, new = await rig.pool.prompts(before), await rig.pool.prompts(after)
        assert (old.facts.max_model_len, new.facts.max_model_len) == (2048, 32)
        for entry in (before, after):
            (await rig.pool.lease(entry)).release()
        lease.release()
        rig.clock.now += 2 * RETIRE_AFTER_S
        await rig.cluster.looked()
        assert rig.cluster.retired == []


async def test_another_checkpoint_under_the_same_id_is_another_model(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "other")
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        before, old = rig.entry(), rig.name()
        await rig.adopt({**A, "source": "./other"})
        assert rig.name() != old
        assert rig.cluster.deploys[-1].keys() == {rig.name()}
        lease = await rig.pool.lease(before)
        assert lease.engine is rig.cluster.engines[old]
        lease.release()
        rig.clock.now += RETIRE_AFTER_S - 1
        await rig.cluster.looked()
        assert rig.cluster.retired == []
        rig.clock.now += 1
        await rig.cluster.looked()
        assert rig.cluster.retired == [old]
        # It ends its running requests first, and is not told again meanwhile.
        rig.clock.now += 2 * RETIRE_AFTER_S
        await rig.cluster.looked()
        assert rig.cluster.retired == [old]
        assert rig.pool.is_ready(rig.entry())


async def test_what_comes_back_in_time_is_not_retired(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        await rig.adopt({"id": "b"})
        rig.clock.now += RETIRE_AFTER_S - 1
        await rig.adopt(A, {"id": "b"})
        rig.clock.now += RETIRE_AFTER_S
        await rig.cluster.looked()
        assert rig.cluster.retired == []


async def test_what_comes_back_later_is_deployed_and_retired_again(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        name = rig.name()
        for times in (1, 2):
            await rig.adopt({"id": "b"})
            rig.clock.now += RETIRE_AFTER_S
            await rig.cluster.looked()
            assert rig.cluster.retired == [name] * times
            await rig.adopt(A)
            assert name in rig.cluster.deploys[-1]
            (await rig.pool.lease(rig.entry())).release()


async def test_a_removed_model(tmp_path: Path) -> None:
    async with rigged(tmp_path, A, {"id": "b"}) as rig:
        await rig.loaded("a")
        gone = rig.entry("b")
        await rig.adopt(A)
        assert not rig.pool.is_ready(gone)
        with pytest.raises(Unavailable, match="b was just taken out"):
            await rig.pool.lease(gone)
        with pytest.raises(Unavailable, match="b was just taken out"):
            await rig.pool.prompts(gone)
        rig.clock.now += RETIRE_AFTER_S
        await rig.cluster.looked()
        assert rig.cluster.retired == [name_of(gone)]


async def test_what_others_have_deployed_is_retired_when_no_registry_has_it(
    tmp_path: Path,
) -> None:
    async with rigged(tmp_path, A) as rig:
        rig.cluster.found["stranger.1"] = "ready", None
        await rig.loaded("a")
        rig.clock.now += RETIRE_AFTER_S
        await rig.cluster.looked()
        assert rig.cluster.retired == ["stranger.1"]


@pytest.fixture(params=[DOWN, ValueError("what nobody has foreseen")], ids=["down", "unforeseen"])
def error(request: pytest.FixtureRequest) -> Exception:
    found: Exception = request.param
    return found


async def test_a_head_that_does_not_answer_loses_no_change(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with rigged(tmp_path, A, deploy_error=error) as rig:
        loading = asyncio.create_task(rig.loaded("a"))
        await rig.cluster.looked(5)
        assert rig.cluster.deploys == []
        # Said once, not with each attempt.
        assert [record.getMessage() for record in caplog.records] == [str(error)]
        rig.cluster.deploy_error = None
        await loading
        rig.cluster.deploy_error = error
        await rig.adopt(A, {"id": "b"})
        assert rig.pool.is_ready(rig.entry("a"))
        rig.cluster.deploy_error = None
        (await rig.pool.lease(rig.entry("b"))).release()
        # What runs as it should is left alone.
        assert rig.cluster.deploys[-1].keys() == {rig.name("b")}


async def test_what_somebody_took_away_is_deployed_again(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        del rig.cluster.found[rig.name()]
        await rig.cluster.looked(2)
        assert [models.keys() for models in rig.cluster.deploys] == [{rig.name()}] * 2


async def test_models_serve_on_while_the_head_does_not_answer(
    tmp_path: Path, error: Exception
) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        rig.cluster.states_error = error
        await rig.cluster.looked()
        assert rig.pool.is_ready(rig.entry())
        (await rig.pool.lease(rig.entry())).release()
        rig.cluster.found[rig.name()] = "loading", None
        rig.cluster.states_error = None
        await rig.cluster.looked()
        assert not rig.pool.is_ready(rig.entry())
        assert rig.cluster.attempts == 1


@pytest.mark.usefixtures("rarely")
async def test_a_head_that_does_not_answer_is_asked_now_and_then(
    tmp_path: Path, error: Exception
) -> None:
    async with rigged(tmp_path, A, deploy_error=error) as rig:
        rig.pool.want("a")
        await settled()
        assert rig.cluster.attempts == 1
        rig.pool.adopt(make_registry(tmp_path, [A]).present())
        await settled()
        assert rig.cluster.attempts == 1


async def test_it_looks_seldom_until_a_model_that_is_not_ready_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All front ends' looks are answered by one process of the cluster."""
    monkeypatch.setattr(cluster_pool, "LOOK_EVERY_S", 600)
    async with rigged(tmp_path, A, {"id": "b"}) as rig:
        rig.cluster.found[rig.name("b")] = "cold", None
        await rig.loaded("a")

        async def looks_no_more() -> bool:
            rig.clock.now += MOVING_S
            await asyncio.sleep(20 * SOON_S)
            looks = rig.cluster.looks
            (await rig.pool.lease(rig.entry("a"))).release()
            await asyncio.sleep(20 * SOON_S)
            return rig.cluster.looks == looks

        assert await looks_no_more()
        (await rig.pool.lease(rig.entry("b"))).release()
        await rig.cluster.looked(5)
        rig.cluster.found[rig.name("b")] = "ready", None
        await rig.cluster.looked()
        assert rig.pool.is_ready(rig.entry("b"))
        assert await looks_no_more()


async def test_it_looks_often_while_models_are_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_pool, "LOOK_EVERY_S", 600)
    async with rigged(tmp_path, A) as rig:
        rig.cluster.found[rig.name()] = "cold", None
        loading = asyncio.create_task(rig.pool.load(["a"]))
        await rig.cluster.looked()
        rig.cluster.found[rig.name()] = "ready", None
        await asyncio.wait_for(loading, 5)


async def test_a_lease_waits_for_the_first_deploy(tmp_path: Path) -> None:
    async with rigged(tmp_path, A, deploy_error=DOWN) as rig:
        leasing = asyncio.create_task(rig.pool.lease(rig.entry()))
        await rig.cluster.looked()
        assert not leasing.done()
        rig.cluster.deploy_error = None
        lease = await asyncio.wait_for(leasing, 5)
        assert lease.engine is rig.cluster.engines[rig.name()]
        lease.release()


@pytest.mark.parametrize(("max_wait_s", "patience_s"), [(0.01, 600), (600, 0.01)])
async def test_a_lease_does_not_wait_for_ever(
    tmp_path: Path, max_wait_s: float, patience_s: float
) -> None:
    async with rigged(tmp_path, A, max_wait_s=max_wait_s, deploy_error=DOWN) as rig:
        with pytest.raises(Unavailable, match="cluster does not answer") as caught:
            await rig.pool.lease(rig.entry(), asker=Asker(patience_s=patience_s))
        assert caught.value.status == 503


async def test_a_model_whose_files_are_unfit_is_in_nobodys_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (make_adapter(tmp_path / "lora") / "adapter_config.json").write_text("{}")
    unfit = {"id": "unfit", "loras": [{"id": "lora", "source": "./lora"}]}
    async with rigged(tmp_path, A, unfit) as rig:
        await rig.loaded("a")
        await rig.cluster.looked()
        assert [deployed.keys() for deployed in rig.cluster.deploys] == [{rig.name("a")}]
        slot = rig.pool.slots["unfit"]
        assert (slot.state, str(tmp_path) in str(slot.reason)) == ("failed", False)
        with pytest.raises(NotLoaded):
            await rig.pool.lease(slot.entry)
        [said] = caplog.records
        assert "names no rank" in said.getMessage()


async def test_replicas_are_not_for_a_front_end_to_dismiss(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        for to in ("asleep", "cold"):
            with pytest.raises(BadRequest, match="`replicas`") as caught:
                rig.pool.dismiss("a", to)
            assert (caught.value.status, caught.value.param) == (400, "model")


async def test_a_lost_replica_does_not_make_its_model_unready(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await rig.loaded("a")
        rig.pool.want("a")
        lease = await rig.pool.lease(rig.entry())
        with pytest.raises(EngineLost), lease.watched():
            raise EngineLost
        lease.release()
        assert rig.pool.is_ready(rig.entry())
        assert not rig.pool.slots["a"].is_lost


async def test_prompts_that_cannot_be_made(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        rig.backend.prompt_errors.append(EngineStartError("/a/path: no tokenizer"))
        with pytest.raises(NotLoaded, match="a cannot be used"):
            await rig.pool.prompts(rig.entry())
        assert (await rig.pool.prompts(rig.entry())).facts.max_model_len == 2048


async def test_close_ends_every_wait(tmp_path: Path) -> None:
    async with rigged(tmp_path, A, max_wait_s=600, deploy_error=DOWN) as rig:
        leasing = asyncio.create_task(rig.pool.lease(rig.entry()))
        await rig.cluster.looked()
        await rig.pool.close(0)
        with pytest.raises(Unavailable, match="shutting down"):
            await asyncio.wait_for(leasing, 5)
        attempts = rig.cluster.attempts
        with pytest.raises(Unavailable, match="shutting down"):
            await asyncio.wait_for(rig.pool.lease(rig.entry()), 5)
        await settled()
        assert rig.cluster.attempts == attempts


async def test_nothing_is_begun_before_it_is_asked_for(tmp_path: Path) -> None:
    async with rigged(tmp_path, A) as rig:
        await settled()
        assert rig.cluster.attempts == rig.cluster.looks == 0


@pytest.mark.parametrize("odd", ["owner/name", "a b", "ä.ö_ü#"])
def test_names_are_readable_and_differ(tmp_path: Path, odd: str) -> None:
    plain = odd.replace("/", "-")
    registry = make_registry(tmp_path, [{"id": odd}, {"id": f"{plain}."}, {"id": f"{plain}-"}])
    names = {name_of(entry) for entry in registry.present()}
    assert len(names) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in names)
