"""Which models have room on the GPUs that were named."""

from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import ConfigError
from tenuto.models.devices import devices_of, room_on
from tenuto.models.registry import Registry
from tests.conftest import make_registry

DEMO = Path(__file__).parents[2] / "server/tenuto/demo/checkpoint"


def registry_of(directory: Path, **models: dict[str, Any]) -> Registry:
    rows = [{"id": name, "source": str(DEMO), **fields} for name, fields in models.items()]
    return make_registry(directory, rows)


@pytest.mark.parametrize(
    ("text", "sizes_gib"), [("141GiB", [141]), ("80GiBx2", [80, 80]), ("24 GiB \u00d7 1", [24])]
)
def test_devices_by_hand(text: str, sizes_gib: list[int]) -> None:
    assert [d.total_bytes >> 30 for d in devices_of([text], "--gpu")] == sizes_gib


@pytest.mark.parametrize("text", ["", "many", "0GiB", "80GiBx0"])
def test_a_bad_size_names_its_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu"):
        devices_of([text], "--gpu")


def test_models_with_a_kv_budget_lie_side_by_side(tmp_path: Path) -> None:
    budget = {"gpu_memory": "64MiB"}
    registry = registry_of(tmp_path, one=budget, two=budget, three=budget)
    fits = room_on(devices_of(["6GiB"], "--gpu"), registry.present())
    assert fits(frozenset({"one", "two"}))
    assert not fits(frozenset({"one", "two", "three"}))


def test_a_model_without_one_has_its_gpu_alone(tmp_path: Path) -> None:
    registry = registry_of(tmp_path, whole={}, other={"gpu_memory": "64MiB"})
    one, two = devices_of(["80GiB"], "--gpu"), devices_of(["80GiBx2"], "--gpu")
    both = frozenset({"whole", "other"})
    assert room_on(one, registry.present())(frozenset({"whole"}))
    assert not room_on(one, registry.present())(both)
    assert room_on(two, registry.present())(both)


def test_a_model_of_unknown_size_is_loaded_alone(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, [{"id": "unknown"}, {"id": "other"}])
    fits = room_on(devices_of(["80GiB"], "--gpu"), registry.present())
    assert fits(frozenset({"unknown"}))
    assert not fits(frozenset({"unknown", "other"}))
