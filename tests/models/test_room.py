"""Which models have room on the GPUs and in the host's memory, and what place each gets."""

from pathlib import Path
from typing import Any

import pytest

from tenuto.models.decisions import NONE, Ids
from tenuto.models.devices import devices_of
from tenuto.models.planner import ASLEEP_BYTES, Host
from tenuto.models.registry import Registry
from tenuto.models.room import GpuRoom, Place, Room
from tests.conftest import make_registry

DEMO = Path(__file__).parents[2] / "server/tenuto/demo/checkpoint"
BUDGET = {"gpu_memory": "64MiB"}


def registry_of(directory: Path, **models: dict[str, Any]) -> Registry:
    rows = [{"id": name, "source": str(DEMO), **fields} for name, fields in models.items()]
    return make_registry(directory, rows)


def room_for(registry: Registry, gpus: str, host_bytes: int = 0, **fields: Any) -> GpuRoom:
    room = GpuRoom(Host(devices_of([gpus], "--gpu"), host_bytes), **fields)
    room.plan(registry.present())
    return room


def ids(*names: str) -> Ids:
    return frozenset(names)


def test_models_with_a_kv_budget_lie_side_by_side(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, one=BUDGET, two=BUDGET, three=BUDGET), "6GiB")
    assert room.fits(ids("one", "two"), NONE)
    assert not room.fits(ids("one", "two", "three"), NONE)


def test_models_without_one_share_what_is_left(tmp_path: Path) -> None:
    """Each gets a KV cache of its own size, so that both lie there at once."""
    room = room_for(registry_of(tmp_path, one={}, two={}), "12GiB")
    assert room.fits(ids("one", "two"), NONE)
    one = room.place("one", NONE, NONE)
    two = room.place("two", ids("one"), NONE)
    assert one.devices == two.devices == (0,)
    assert one.kv_bytes == two.kv_bytes
    assert one.kv_bytes is not None
    assert one.kv_bytes > 2 << 30


def test_one_that_swaps_takes_what_the_others_leave(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, one={}, two={}), "3GiB")
    assert not room.fits(ids("one", "two"), NONE)
    first, second = room.place("one", NONE, NONE), None
    room.vacate("one")
    second = room.place("two", NONE, NONE)
    assert first == second


def test_an_engine_stays_on_its_gpu(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, **dict.fromkeys("abcd", BUDGET)), "6GiBx2")
    awake = NONE
    for name in "abcd":
        room.place(name, awake, NONE)
        awake |= {name}
    free = {"a": room.place("a", awake - {"a"}, NONE).devices}
    room.vacate("b")
    assert room.place("b", ids("a", "c", "d"), NONE).devices != free["a"]


def test_sleepers_take_host_memory_and_some_of_the_gpu(tmp_path: Path) -> None:
    weights = 900_000
    registry = registry_of(tmp_path, one=BUDGET, two=BUDGET, deep={**BUDGET, "sleep_level": 2})
    room = room_for(registry, "5GiB", host_bytes=weights)
    room.place("one", NONE, NONE)
    assert room.fits(ids("two"), ids("one"))
    assert not room.fits(ids("deep"), ids("one", "two"))
    assert room.fits(ids("one"), ids("deep"))
    tight = room_for(registry, "3GiB", host_bytes=weights)
    tight.place("one", NONE, NONE)
    assert tight.fits(ids("two"), NONE)
    assert ASLEEP_BYTES > 3 << 28
    assert not tight.fits(ids("two"), ids("one"))


def test_a_new_plan_leaves_living_engines_what_they_have(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, one={}), "12GiB")
    before = room.place("one", NONE, NONE)
    room.plan(registry_of(tmp_path, one={}, two={}).present())
    assert not room.fits(ids("one", "two"), NONE)
    room.vacate("one")
    assert room.fits(ids("one", "two"), NONE)
    after = room.place("one", NONE, NONE)
    assert after.kv_bytes is not None
    assert before.kv_bytes is not None
    assert after.kv_bytes < before.kv_bytes


def test_who_has_slept_keeps_its_host_memory(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, one=BUDGET, two=BUDGET), "5GiB", host_bytes=10**6)
    room.place("one", NONE, NONE)
    room.slept("one")
    assert room.fits(ids("two"), ids("one"))
    assert not room.fits(ids("one"), ids("two"))
    room.vacate("one")
    assert room.fits(ids("one"), ids("two"))


def test_a_sleeper_that_the_plan_no_longer_has(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, one=BUDGET, two=BUDGET), "5GiB", host_bytes=10**6)
    room.place("one", NONE, NONE)
    room.plan(registry_of(tmp_path, two=BUDGET).present())
    assert room.fits(ids("two"), ids("one"))


def test_a_model_of_unknown_size_is_loaded_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = room_for(make_registry(tmp_path, [{"id": "unknown"}, {"id": "other"}]), "80GiB")
    assert room.fits(ids("unknown"), NONE)
    assert not room.fits(ids("unknown", "other"), NONE)
    assert not room.fits(ids("unknown"), ids("other"))
    assert room.place("unknown", NONE, NONE) == Place()
    assert "it is loaded alone" in caplog.text


def test_a_rehearsal_tells_the_engines_nothing(tmp_path: Path) -> None:
    room = room_for(registry_of(tmp_path, one={}), "80GiB", rehearsal=True)
    assert room.place("one", NONE, NONE) == Place()


def test_without_gpus_there_is_always_room() -> None:
    assert Room().fits(ids("a", "b"), ids("c"))
    assert Room().place("a", NONE, NONE) == Place()
