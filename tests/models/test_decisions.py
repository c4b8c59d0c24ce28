"""Who is loaded, who makes room: the policy alone, and over a simulated day of two models."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.models.decisions import AWAKE, Decision, Ids, Snapshot, decide
from tests.models.pools import only
from tests.models.simulation import Request, Simulation, every

TURN_S = 10.0


def cold(id: str = "new", since: float | None = 100.0, **fields: Any) -> Snapshot:
    return Snapshot(id, "cold", waiting_since=since, **fields)


def ready(id: str = "old", **fields: Any) -> Snapshot:
    return Snapshot(id, "ready", **fields)


def decided(*models: Snapshot, places: int = 1, now: float = 100.0) -> Decision:
    return decide(models, only(places), now, TURN_S)


def test_nothing_is_loaded_for_nobody() -> None:
    assert decided(cold(since=None), ready()) == Decision()


def test_a_model_with_room_is_loaded_at_once() -> None:
    assert decided(cold(), ready(), places=2) == Decision(load="new")


def test_the_longest_wait_comes_first() -> None:
    models = [cold("a", 99.0), cold("b", 98.0), cold("c", None, wanted=True)]
    assert decided(*models, places=3).load == "b"


def test_one_at_a_time() -> None:
    assert decided(cold(), Snapshot("x", "loading"), places=9) == Decision()
    assert decided(cold(), Snapshot("x", "unloading"), places=9) == Decision()


def test_the_least_recently_used_idle_model_makes_room() -> None:
    models = [ready("a", used_at=5.0), ready("b", used_at=3.0), ready("c", used_at=4.0)]
    assert decided(cold(), *models, places=3).unload == ("b",)


def test_as_few_as_possible_make_room() -> None:
    """A large model alone makes the room that the small ones before it could not."""
    sizes = {"small": 1, "large": 4, "new": 4}

    def fits(models: Ids, asleep: Ids) -> bool:
        return sum(sizes[name] for name in models) <= 5

    models = [cold(), ready("small", used_at=1.0), ready("large", used_at=2.0)]
    assert decide(models, fits, 100.0, TURN_S).unload == ("large",)


def test_a_busy_model_keeps_its_place_for_its_turn() -> None:
    busy = ready(leases=1, ready_at=95.0)
    assert decided(cold(since=90.0), busy, now=104.0) == Decision(again_at=105.0)
    held = decided(cold(since=90.0), busy, now=105.0)
    assert (held.hold, held.unload, held.load) == (frozenset({"old"}), (), None)
    gone = decided(cold(since=90.0), replace(busy, leases=0, waiting_since=101.0), now=105.0)
    assert gone.unload == ("old",)


def test_nobody_is_disturbed_for_one_that_nobody_waits_for() -> None:
    wanted = cold(since=None, wanted=True)
    assert decided(wanted, ready(), now=1e9) == Decision()
    assert decided(wanted, ready(), places=2).load == "new"


def test_pinned_models_stay() -> None:
    impossible = decided(cold(), ready(pinned=True))
    assert (impossible.unload, impossible.impossible) == ((), ("new",))


def test_what_is_too_large_does_not_hold_up_the_others() -> None:
    def fits(models: Ids, asleep: Ids) -> bool:
        return "huge" not in models and len(models) <= 1

    decision = decide([cold("huge", 1.0), cold("small", 2.0)], fits, 100.0, TURN_S)
    assert (decision.impossible, decision.load) == (("huge",), "small")


def test_back_off() -> None:
    failed = Snapshot("new", "failed", waiting_since=90.0, retry_at=103.0)
    assert decided(failed) == Decision(again_at=103.0)
    assert decided(failed, now=103.0).load == "new"
    assert decided(replace(failed, retry_at=math.inf), now=1e9) == Decision()


def test_idle_for_too_long() -> None:
    idle = ready(idle_ttl_s=60.0, used_at=50.0)
    assert decided(idle, now=100.0) == Decision(again_at=110.0)
    assert decided(idle, now=110.0).unload == ("old",)
    for kept in ({"leases": 1}, {"pinned": True}, {"waiting_since": 1.0}):
        assert decided(replace(idle, **kept), now=1e9).unload == ()


def asleep(id: str = "old", **fields: Any) -> Snapshot:
    return Snapshot(id, "asleep", can_sleep=True, **fields)


def slept(*models: Snapshot, places: int = 1, beds: int = 9, now: float = 100.0) -> Decision:
    return decide(models, only(places, beds), now, TURN_S)


def test_who_can_sleeps_instead_of_being_unloaded() -> None:
    going = slept(cold(), ready(can_sleep=True))
    assert (going.suspend, going.unload, going.load) == (("old",), (), None)
    assert slept(cold(), ready()).unload == ("old",)
    assert slept(cold(), asleep()).load == "new"


def test_who_sleeps_is_woken() -> None:
    assert slept(asleep(waiting_since=90.0)).load == "old"
    going = slept(asleep("new", waiting_since=90.0), ready(can_sleep=True), beds=1)
    assert going.suspend == ("old",)


def test_the_longest_unused_sleeper_leaves_its_bed() -> None:
    sleeping = [asleep("a", used_at=2.0), asleep("b", used_at=1.0)]
    going = slept(cold(), ready(can_sleep=True, used_at=3.0), *sleeping, beds=2)
    assert (going.suspend, going.unload) == (("old",), ("b",))
    assert slept(cold(), ready(can_sleep=True), beds=0).unload == ("old",)


def test_sleepers_that_are_in_the_way_go_and_nobody_else() -> None:
    """What they keep of the GPU can be too much for a large model."""

    def fits(awake: Ids, sleeping: Ids) -> bool:
        return 4 * len(awake) + len(sleeping) <= 5

    models = [asleep("a", used_at=2.0), asleep("b", used_at=1.0)]
    going = decide([cold(), *models], fits, 100.0, TURN_S)
    assert (going.unload, going.suspend, going.load) == (("b",), (), None)


def test_pinned_sleepers_stay() -> None:
    going = slept(cold(), ready(can_sleep=True), asleep("a", pinned=True, used_at=-1.0), beds=1)
    assert (going.suspend, going.unload) == ((), ("old",))


def test_a_sleeper_that_finds_no_room_where_it_lies_is_unloaded() -> None:
    wanted = asleep("a", waiting_since=90.0)
    going = slept(wanted, ready("b", pinned=True))
    assert (going.unload, going.impossible) == (("a",), ())
    assert slept(cold("a", 90.0), ready("b", pinned=True)).impossible == ("a",)


def test_sleepers_that_nobody_uses_go_after_their_time() -> None:
    idle = asleep(idle_ttl_s=60.0, used_at=50.0)
    assert slept(idle, now=109.0) == Decision(again_at=110.0)
    assert slept(idle, now=110.0).unload == ("old",)


def test_who_is_dismissed_goes_when_its_requests_have_ended() -> None:
    busy = ready(dismissed="asleep", can_sleep=True, leases=1, pinned=True)
    assert slept(busy) == Decision(hold=frozenset({"old"}))
    assert slept(replace(busy, leases=0)).suspend == ("old",)
    assert slept(replace(busy, leases=0), beds=0).unload == ("old",)
    assert slept(replace(busy, leases=0, dismissed="cold")).unload == ("old",)
    assert slept(asleep(dismissed="cold")).unload == ("old",)


STATES = ["cold", "loading", "ready", "suspending", "asleep", "waking", "unloading", "failed"]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Snapshot], int, int]:
    """Any mixture of models; what occupies memory fits, as it does in a pool."""
    times = st.floats(0, 200)
    models = [
        Snapshot(
            str(i),
            draw(st.sampled_from(STATES)),
            leases=draw(st.integers(0, 2)),
            waiting_since=draw(st.none() | st.floats(0, 100)),
            used_at=draw(times),
            ready_at=draw(times),
            retry_at=draw(times),
            wanted=draw(st.booleans()),
            pinned=draw(st.booleans()),
            idle_ttl_s=draw(st.none() | times),
            can_sleep=draw(st.booleans()),
            dismissed=draw(st.sampled_from([None, None, "asleep", "cold"])),
        )
        for i in range(draw(st.integers(1, 6)))
    ]
    models = [m if m.state == "ready" else replace(m, leases=0) for m in models]
    awake = sum(m.state in AWAKE for m in models)
    sleeping = sum(m.state == "asleep" for m in models)
    places = max(1, awake, draw(st.integers(1, 6)))
    return models, places, max(sleeping, draw(st.integers(0, 6)))


@given(situations())
def test_whatever_comes(situation: tuple[list[Snapshot], int, int]) -> None:
    models, places, beds = situation
    decision = decide(models, only(places, beds), 100.0, TURN_S)
    by_id = {m.id: m for m in models}
    for name in decision.suspend:
        assert (by_id[name].state, by_id[name].leases) == ("ready", 0)
        assert by_id[name].can_sleep
    for name in decision.unload:
        assert by_id[name].state in ("ready", "asleep")
        assert by_id[name].leases == 0
    for name in (*decision.unload, *decision.suspend):
        # One that sleeps and is wanted may be unloaded, to lie elsewhere.
        moves = by_id[name].state == "asleep" and name in decision.unload
        assert not by_id[name].pinned or by_id[name].dismissed or moves
    assert not {*decision.suspend} & {*decision.unload}
    assert all(by_id[name].state == "ready" for name in decision.hold)
    assert decision.again_at > 100.0
    sleeping = {m.id for m in models if m.state == "asleep"} - {*decision.unload, decision.load}
    assert len(sleeping | {*decision.suspend}) <= beds
    if decision.load is not None:
        assert not decision.unload
        assert not decision.suspend
        assert sum(m.state in AWAKE for m in models) + 1 <= places


@pytest.mark.parametrize("period_s", [0.3, 1.0, 3.0])
def test_no_request_waits_longer_than_the_bound(period_s: float) -> None:
    """Two models that are asked for without end, of which one fits: the docstring's bound."""
    load_s, unload_s, run_s = 6.0, 1.0, 4.0
    simulation = Simulation(["a", "b"], only(1), TURN_S, load_s, unload_s)
    for when in every(period_s, 600):
        for name in "ab":
            simulation.asks(when, Request(name, run_s))
    simulation.run()
    bound_s = TURN_S + 2 * run_s + 2 * (load_s + unload_s)
    assert max(simulation.waits) <= bound_s
    assert simulation.num_loads <= 600 / TURN_S


@pytest.mark.parametrize("num_models", [2, 3])
def test_few_switches_for_requests_in_random_order(num_models: int) -> None:
    chance = random.Random(num_models)
    names = [str(i) for i in range(num_models)]
    simulation = Simulation(names, only(1), TURN_S, load_s=2.0, unload_s=1.0)
    for i in range(200):
        simulation.asks(i * 0.05, Request(chance.choice(names), run_s=0.2))
    assert len(simulation.run().waits) == 200
    assert simulation.num_loads <= 40
