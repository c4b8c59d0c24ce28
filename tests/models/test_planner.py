"""What fits, with the shapes of real models, and properties. test_default_plan.py has the models of
the default registry, on every size of GPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.models.planner import (
    ASLEEP_BYTES,
    Change,
    Device,
    Fit,
    Host,
    Misfit,
    Need,
    alone,
    fit,
    kv_budget,
    kv_budgets,
    placement,
    sleepers,
    together,
)

GIB = 2**30
WORK_BYTES = 5 * 2**29
# Sizes as NVML says them: a card sold as 80 GB has 79.6 GiB, one as 141 GB has 140.4 GiB.
GPU_24 = Device(0, 24 * GIB)
GPU_48 = Device(0, 48 * GIB)
GPU_80 = Device(0, int(79.6 * GIB))
GPU_141 = Device(0, int(140.4 * GIB))
TWO_80 = (GPU_80, replace(GPU_80, index=1))


def made(name: str, weights_gib: float, layers: int, **keys: Any) -> Need:
    """A model with 8 KV heads of 128, in 16 bits: 4 KiB of KV cache per layer and token."""
    kv_bytes = layers * 8 * 128 * 2 * 2
    need = Need(
        model_id=name,
        weights_bytes=int(weights_gib * GIB),
        kv_bytes_per_token=kv_bytes,
        kv_heads=8,
        max_model_len=32768,
        work_bytes=WORK_BYTES,
        fp8_kv_bytes_per_token=kv_bytes // 2,
    )
    return replace(need, **keys)


LLAMA_70B = made("Llama-70B", 67.7, 80)
QWEN_72B = made("Qwen-72B", 70.0, 80)
MIQU_70B = made("Miqu-70B", 64.7, 80, max_model_len=16384)
NEMO_12B = made("Nemo-12B", 12.7, 40)
OTHER_12B = replace(NEMO_12B, model_id="other-12B")
NEMO_BF16 = made("Nemo-12B", 22.8, 40, fp8_weights_bytes=int(12.7 * GIB))


def with_fp8_kv(need: Need) -> Need:
    return replace(Change(kv_cache_dtype="fp8").applied(need), fp8_kv_bytes_per_token=None)


def tokens(need: Need, device: Device) -> int:
    found = fit(need, device)
    assert isinstance(found, Fit)
    return found.kv_tokens


def misfit(need: Need, device: Device) -> Misfit:
    found = fit(need, device)
    assert isinstance(found, Misfit)
    return found


@pytest.mark.parametrize(
    ("device", "usable_gib"), [(GPU_24, 22), (GPU_48, 44), (GPU_80, 73), (GPU_141, 129)]
)
def test_usable_memory(device: Device, usable_gib: int) -> None:
    assert device.usable_bytes / GIB == pytest.approx(usable_gib, abs=0.3)


def test_12b_in_16_bits_is_too_much_for_24_gb() -> None:
    found = misfit(NEMO_BF16, GPU_24)
    assert found.reason == "25.3 GiB of weights and work space, 22.1 GiB of GPU usable"
    assert found.changes[0] == Change(quantization="fp8")
    assert Change(tensor_parallel_size=2) in found.changes


def test_70b_on_80_gb_has_a_short_context() -> None:
    found = misfit(LLAMA_70B, GPU_80)
    assert found.reason == "a context of 32,768 tokens, and KV cache for 9,904"
    assert found.changes == (
        Change(max_model_len=9216),
        Change(kv_cache_dtype="fp8", max_model_len=19456),
        Change(tensor_parallel_size=2),
    )
    assert str(found.changes[1]) == "kv_cache_dtype: fp8, max_model_len: 19456"
    assert misfit(with_fp8_kv(LLAMA_70B), GPU_80).changes == (
        Change(max_model_len=19456),
        Change(tensor_parallel_size=2),
    )
    shorter = replace(LLAMA_70B, max_model_len=8192)
    assert tokens(shorter, GPU_80) == pytest.approx(10_000, rel=0.15)
    assert tokens(with_fp8_kv(shorter), GPU_80) == pytest.approx(20_000, rel=0.15)


def test_fp8_kv_cache_alone_can_be_enough() -> None:
    found = misfit(replace(LLAMA_70B, max_model_len=262_144), GPU_141)
    assert found.changes[:2] == (Change(kv_cache_dtype="fp8"), Change(max_model_len=192_512))
    assert len(found.changes) == 3


def test_nothing_helps_a_model_that_eight_gpus_do_not_hold() -> None:
    assert misfit(made("giant", 1000.0, 80), GPU_80).changes == ()


def test_two_70b_swap_on_141_gb() -> None:
    other = replace(LLAMA_70B, model_id="other-70B")
    plan = together((LLAMA_70B, other, NEMO_12B), Host((GPU_141,)))
    assert set(plan.loaded) == {"Llama-70B", "Nemo-12B"}
    assert plan.swaps == {"other-70B": ("Llama-70B",)}


def test_pinned_models_never_leave() -> None:
    pinned = replace(NEMO_12B, pinned=True)
    other = replace(LLAMA_70B, model_id="other-70B", max_model_len=120_000)
    plan = together((LLAMA_70B, other, pinned), Host((GPU_141,)))
    assert list(plan.loaded) == ["Llama-70B", "Nemo-12B"]
    assert plan.swaps == {"other-70B": ("Llama-70B",)}
    too_large = replace(LLAMA_70B, model_id="other-70B", max_model_len=180_000)
    assert isinstance(fit(too_large, GPU_141), Fit)
    assert together((too_large, pinned), Host((GPU_141,))).swaps == {}


def test_three_70b_sleep_in_256_gib() -> None:
    models = [replace(LLAMA_70B, model_id=name) for name in "abcd"]
    assert sleepers(models, 256 * GIB) == ("a", "b", "c")
    assert sleepers([*models, NEMO_12B], 256 * GIB) == ("a", "b", "c", "Nemo-12B")


def test_memory_is_kept_for_sleepers_where_models_take_turns() -> None:
    other = replace(LLAMA_70B, model_id="other-70B")
    host = Host((GPU_141,), 256 * GIB)
    beside = [LLAMA_70B, NEMO_12B]
    whole = together(beside, Host((GPU_141,))).kv_bytes
    assert together(beside, host).kv_bytes == whole
    kept = sum(whole.values()) - sum(
        together([*beside, other], host).kv_bytes[n.model_id] for n in beside
    )
    assert kept == pytest.approx(2 * ASLEEP_BYTES, abs=2)


def test_no_model_goes_so_that_others_can_sleep() -> None:
    gpu = replace(GPU_48, total_bytes=45 * GIB)
    long = replace(NEMO_12B, model_id="long-12B", max_model_len=131072)
    plan = together((NEMO_12B, OTHER_12B, long), Host((gpu,), 256 * GIB))
    assert plan.loaded.keys() == {"Nemo-12B", "other-12B"}


def test_alone_takes_the_largest_devices() -> None:
    devices = (GPU_24, replace(GPU_141, index=1), replace(GPU_80, index=2))
    assert alone(LLAMA_70B, devices) == fit(LLAMA_70B, GPU_141)
    pair = replace(LLAMA_70B, tensor_parallel_size=2)
    assert alone(pair, devices) == fit(pair, GPU_80)
    assert alone(pair, devices[:1]) == Misfit("wants 2 GPUs of 1")
    four = replace(LLAMA_70B, tensor_parallel_size=2, pipeline_parallel_size=2)
    assert alone(four, devices) == Misfit("wants 4 GPUs of 3")


def test_gpus_beyond_the_kv_heads_hold_copies() -> None:
    eight = replace(LLAMA_70B, tensor_parallel_size=8)
    assert replace(eight, tensor_parallel_size=16).block_bytes == eight.block_bytes
    halves = replace(eight, pipeline_parallel_size=2)
    assert halves.block_bytes == eight.block_bytes // 2


def test_gpu_memory_is_taken_as_it_is_set() -> None:
    need = replace(NEMO_12B, gpu_memory_bytes=6 * GIB)
    assert kv_budget(need, GPU_24.usable_bytes) == 6 * GIB
    rest_bytes = GPU_48.usable_bytes - need.least_bytes - OTHER_12B.fixed_bytes
    assert kv_budget(OTHER_12B, GPU_48.usable_bytes, [need]) == rest_bytes
    assert fit(need, GPU_24) == Fit(6 * GIB, 39_296, 39_296 / 32768)


def test_gpu_memory_that_is_too_small_or_too_large() -> None:
    small = misfit(replace(NEMO_12B, gpu_memory_bytes=GIB), GPU_24)
    assert small.reason == "a context of 32,768 tokens, and KV cache for 6,528"
    assert str(small.changes[0]) == "gpu_memory: 5123MiB"
    large = misfit(replace(NEMO_12B, gpu_memory_bytes=8 * GIB), GPU_24)
    assert large.reason == "its `gpu_memory` is 8.0 GiB, and 6.9 GiB is left"
    assert str(large.changes[0]) == "gpu_memory: 7045MiB"


def test_memory_that_others_take_is_not_given_out() -> None:
    assert isinstance(fit(NEMO_12B, replace(GPU_24, taken_bytes=2 * GIB)), Misfit)
    assert replace(GPU_24, taken_bytes=30 * GIB).usable_bytes == 0


def test_models_that_are_placed_stay() -> None:
    for taken, other in ((0, 1), (1, 0)):
        assert placement((MIQU_70B, NEMO_12B), TWO_80, {"Nemo-12B": (taken,)}) == {
            "Nemo-12B": (taken,),
            "Miqu-70B": (other,),
        }
    assert placement((MIQU_70B, NEMO_12B), (GPU_80,), {"Nemo-12B": (0,)}) is None


def test_the_largest_models_take_the_emptiest_devices() -> None:
    assert placement((QWEN_72B, NEMO_12B), (GPU_141, replace(GPU_80, index=1))) == {
        "Qwen-72B": (0,),
        "Nemo-12B": (1,),
    }
    both = replace(MIQU_70B, tensor_parallel_size=2, max_model_len=100_000)
    assert placement((both, NEMO_12B), TWO_80) == {"Miqu-70B": (0, 1), "Nemo-12B": (0,)}
    assert placement((replace(both, tensor_parallel_size=4),), TWO_80) is None


needs_drawn = st.builds(
    Need,
    model_id=st.text("abcdefgh", min_size=1, max_size=4),
    weights_bytes=st.integers(0, 100 * GIB),
    kv_bytes_per_token=st.integers(1, 2**21),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    max_model_len=st.integers(1, 200_000),
    work_bytes=st.integers(0, 3 * GIB),
    tensor_parallel_size=st.sampled_from([1, 2, 4]),
    pipeline_parallel_size=st.sampled_from([1, 2]),
    gpu_memory_bytes=st.none() | st.integers(2**20, 100 * GIB),
    fp8_weights_bytes=st.none() | st.integers(0, 50 * GIB),
    fp8_kv_bytes_per_token=st.none() | st.integers(1, 2**20),
    pinned=st.booleans(),
)
many_drawn = st.lists(needs_drawn, max_size=6, unique_by=lambda need: need.model_id)
devices_drawn = st.lists(st.integers(0, 200 * GIB), max_size=4).map(
    lambda sizes: tuple(Device(index, size) for index, size in enumerate(sizes))
)


def assert_within(
    needs: Sequence[Need],
    devices: Sequence[Device],
    placed: dict[str, tuple[int, ...]],
    kv_bytes: dict[str, int],
) -> None:
    """Each model has its GPUs and a full context, and no GPU holds more than it has."""
    for device in devices:
        here = [need for need in needs if device.index in placed[need.model_id]]
        used = sum(need.fixed_bytes + kv_bytes[need.model_id] for need in here)
        assert used <= device.usable_bytes
    for need in needs:
        assert len(set(placed[need.model_id])) == need.gpus
        assert kv_bytes[need.model_id] >= (need.gpu_memory_bytes or need.context_bytes)


@given(many_drawn, devices_drawn)
def test_a_placement_never_exceeds_a_device(needs: list[Need], devices: tuple[Device, ...]) -> None:
    placed = placement(needs, devices)
    if placed is not None:
        assert_within(needs, devices, placed, kv_budgets(needs, devices, placed))


@given(many_drawn, devices_drawn, st.integers(0, 300 * GIB))
def test_what_lies_together_fits_and_pinned_models_stay(
    needs: list[Need], devices: tuple[Device, ...], sleep_bytes: int
) -> None:
    plan = together(needs, Host(devices, sleep_bytes))
    loaded = [need for need in needs if need.model_id in plan.loaded]
    assert_within(loaded, devices, plan.loaded, plan.kv_bytes)
    assert not plan.swaps.keys() & plan.loaded.keys()
    pinned = {need.model_id for need in loaded if need.pinned}
    assert not any(pinned.intersection(leaving) for leaving in plan.swaps.values())


@given(needs_drawn, many_drawn, st.integers(-GIB, 300 * GIB))
def test_a_budget_is_nothing_or_enough(need: Need, beside: list[Need], free_bytes: int) -> None:
    budget = kv_budget(need, free_bytes, beside)
    assert budget == 0 or need.context_bytes <= budget <= free_bytes - need.fixed_bytes


@given(needs_drawn, st.integers(0, 300 * GIB))
def test_every_change_makes_it_fit(need: Need, total_bytes: int) -> None:
    device = Device(0, total_bytes)
    found = fit(need, device)
    if isinstance(found, Fit):
        assert found.kv_tokens >= need.max_model_len
        return
    for change in found.changes:
        assert isinstance(fit(change.applied(need), device), Fit)
        assert str(change)


@given(many_drawn, st.integers(0, 400 * GIB))
def test_sleepers_fit_in_host_memory(needs: list[Need], sleep_bytes: int) -> None:
    asleep = sleepers(needs, sleep_bytes)
    assert sum(n.weights_bytes for n in needs if n.model_id in asleep) <= sleep_bytes
