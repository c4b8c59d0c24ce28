"""What of the default registry fits on GPUs of 24, 48, 80 and 141 GB, alone and together.

The figures that are expected "about" were extrapolated from parameter counts apart from the
planner, with other roundings. The table of docs/operations.md is held exactly.
"""

import re
from dataclasses import replace
from typing import Any

import pytest

from tenuto.models.planner import (
    MIN_CONTEXT_TOKENS,
    Device,
    Fit,
    Host,
    Misfit,
    Need,
    alone,
    gib,
    sleepers,
    together,
)
from tenuto.models.registry import Entry
from tenuto.models.sizes import need_of
from tests.models.hosted import REGISTRY, pulled

GIB = 2**30
# As nvidia-smi says them, in MiB: what is sold as 24 or as 48 GB is not one size.
L4, RTX_4090 = Device(0, 23034 << 20), Device(0, 24564 << 20)
L40S, A6000 = Device(0, 46068 << 20), Device(0, 49140 << 20)
H100, H200 = Device(0, 81559 << 20), Device(0, 143771 << 20)

EURYALE = "Sao10K-L3.3-70B-Euryale-v2.3-FP8-Dynamic"
ANUBIS = "TheDrummer-Anubis-70B-v1-FP8-Dynamic"
KUNOU = "Sao10K-72B-Qwen2.5-Kunou-v1-FP8-Dynamic"
MIQU = "Midnight-Miqu-70B-v1.5"
ROCINANTE = "TheDrummer-Rocinante-12B-v1.1"
UNSLOP = "TheDrummer-UnslopNemo-12B-v4.1"
CYDONIA = "Infermatic-Cydonia-24B-v4.3-FP8-Dynamic"
VALKYRIE = "TheDrummer-Valkyrie-49B-v1"
TWO_GPUS = {"tensor_parallel_size": 2}
FP8_KV = {"kv_cache_dtype": "fp8"}
SHORT = {"max_model_len": MIN_CONTEXT_TOKENS}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Entry]:
    return pulled(tmp_path_factory.mktemp("hub"))


def need(entry: Entry, keys: dict[str, Any]) -> Need:
    """With some keys of the entry set otherwise."""
    return need_of(entry.model_copy(update=keys))


def tokens(entry: Entry, gpu: Device, **keys: Any) -> int:
    """Of KV cache, when the model has as many of these GPUs as it wants to itself; 0: no fit."""
    wanted = need(entry, keys)
    found = alone(wanted, [replace(gpu, index=index) for index in range(wanted.gpus)])
    return found.kv_tokens if isinstance(found, Fit) else 0


@pytest.mark.parametrize(
    ("model", "keys", "gpu", "about"),
    [
        (ROCINANTE, {}, L4, 40_000),
        (ROCINANTE, {}, RTX_4090, 40_000),
        (CYDONIA, {}, L40S, 110_000),
        (CYDONIA, {}, A6000, 110_000),
        (EURYALE, SHORT, H100, 10_000),
        (EURYALE, SHORT | FP8_KV, H100, 20_000),
        (MIQU, {}, H100, 19_000),
        (EURYALE, {}, H200, 190_000),
        (EURYALE, TWO_GPUS, H100, 220_000),
        (MIQU, TWO_GPUS | {"quantization": None}, H100, 40_000),
    ],
)
def test_tokens(entries: dict[str, Entry], model: str, keys: Any, gpu: Device, about: int) -> None:
    assert tokens(entries[model], gpu, **keys) == pytest.approx(about, rel=0.15)


@pytest.mark.parametrize(
    ("model", "keys", "gpu", "changes"),
    [
        (ROCINANTE, {"quantization": None}, RTX_4090, "quantization: fp8; tensor_parallel_size: 2"),
        (
            EURYALE,
            {},
            H100,
            "max_model_len: 9216; kv_cache_dtype: fp8, max_model_len: 19456; "
            "tensor_parallel_size: 2",
        ),
        (KUNOU, {}, H100, "tensor_parallel_size: 2"),
    ],
)
def test_what_would_make_it_fit(
    entries: dict[str, Entry], model: str, keys: Any, gpu: Device, changes: str
) -> None:
    found = alone(need(entries[model], keys), [gpu])
    assert isinstance(found, Misfit)
    assert "; ".join(map(str, found.changes)) == changes


def test_72b_on_two_gpus_of_80_gb(entries: dict[str, Entry]) -> None:
    assert tokens(entries[KUNOU], H100, **TWO_GPUS) > 5 * 32768


def test_70b_on_80_gb_with_its_whole_context(entries: dict[str, Entry]) -> None:
    assert tokens(entries[EURYALE], replace(H100, usable_share=0.95), **FP8_KV) >= 32768


@pytest.mark.parametrize("gpu", [L40S, A6000])
@pytest.mark.parametrize("sleep_gib", [0, 256])
def test_two_12b_on_48_gb(entries: dict[str, Entry], gpu: Device, sleep_gib: int) -> None:
    needs = [need(entries[name], {}) for name in (ROCINANTE, UNSLOP)]
    plan = together(needs, Host((gpu,), sleep_gib * GIB))
    held = [n.tokens_in(plan.kv_bytes[n.model_id]) for n in needs if n.model_id in plan.loaded]
    assert len(held) == 2
    assert min(held) >= 32768


@pytest.mark.parametrize(
    ("models", "least_gib", "most_gib"),
    [((EURYALE, ROCINANTE, UNSLOP), 25, 30), ((VALKYRIE, CYDONIA, ROCINANTE), 35, 40)],
)
def test_three_on_141_gb(
    entries: dict[str, Entry], models: tuple[str, ...], least_gib: int, most_gib: int
) -> None:
    plan = together([need(entries[name], {}) for name in models], Host((H200,), 256 * GIB))
    assert plan.loaded.keys() == set(models)
    assert least_gib <= sum(plan.kv_bytes.values()) / GIB <= most_gib


def test_two_70b_take_turns_on_141_gb(entries: dict[str, Entry]) -> None:
    needs = [need(entries[name], {}) for name in (EURYALE, ANUBIS)]
    plan = together(needs, Host((H200,), 256 * GIB))
    assert plan.swaps == {ANUBIS: (EURYALE,)}


def test_three_70b_sleep_in_256_gib(entries: dict[str, Entry]) -> None:
    large = [need(entry, {}) for name, entry in entries.items() if "70B" in name]
    assert len(large) == 11
    assert len(sleepers(large, 256 * GIB)) == 3


def documented() -> list[list[str]]:
    """The cells of each row: a model, its weights, then tokens on the GPUs."""
    operations = (REGISTRY.parent / "docs" / "operations.md").read_text()
    section = operations.split("## What fits")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)`.*? \| (.+) \|$", section, re.M)
    return [[model, *cells.split(" | ")] for model, cells in rows]


def test_documented_table(entries: dict[str, Entry]) -> None:
    rows = documented()
    assert len(rows) == 7
    for model, weights, *cells in rows:
        keys = SHORT | ({"quantization": None} if "fp16" in weights else {})
        assert gib(need(entries[model], keys).weights_bytes) in weights
        held = [tokens(entries[model], gpu, **keys) for gpu in (L4, L40S, H100, H200)]
        held.append(tokens(entries[model], H100, **keys, **TWO_GPUS))
        assert cells == [f"{number // 1000:,}K" if number else "-" for number in held], model
