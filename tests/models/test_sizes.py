"""Sizes of models whose checkpoints are all header: files of the real length, without data."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import CheckpointError
from tenuto.models.planner import gib
from tenuto.models.registry import Entry
from tenuto.models.sizes import (
    INDEX,
    WORK_BYTES,
    kv_bytes_per_token,
    kv_shape,
    loaded_bytes,
    need_of,
    weights_bytes,
)
from tests.conftest import make_adapter

ELEMENT_BYTES = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4}
FP8 = {"quant_method": "compressed-tensors"}
GIB = 2**30
Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's form."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    head_dim: int = 128
    max_positions: int = 131072

    def config(self, **keys: Any) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            **keys,
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        kv, queries = self.kv_heads * self.head_dim, self.heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def layer(self, number: int, fp8: bool) -> Tensors:
        tensors: Tensors = {f"model.layers.{number}.norm.weight": ("BF16", (self.hidden,))}
        for name, shape in self.linears().items():
            full = f"model.layers.{number}.{name}"
            tensors[f"{full}.weight"] = ("F8_E4M3" if fp8 else "BF16", shape)
            if fp8:
                tensors[f"{full}.weight_scale"] = ("BF16", (shape[0], 1))
        return tensors

    def ends(self) -> Tensors:
        table = ("BF16", (self.vocabulary, self.hidden))
        return {"model.embed_tokens.weight": table, "lm_head.weight": table}


LLAMA_70B = Shape(80, 8192, 64, 8, 28672, 128256)
QWEN_72B = Shape(80, 8192, 64, 8, 29568, 152064)
MIQU_70B = Shape(80, 8192, 64, 8, 28672, 32000, max_positions=32764)
NEMO_12B = Shape(40, 5120, 32, 8, 14336, 131072, max_positions=1024000)
SMALL_24B = Shape(40, 5120, 32, 8, 32768, 131072)


def write_shard(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + ELEMENT_BYTES[dtype] * product(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        # Sparse: the file has its real length, and takes no room on the disk.
        file.truncate(8 + len(encoded) + end)


def product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def make_model(directory: Path, shape: Shape, *, fp8: bool, **keys: Any) -> Path:
    """A checkpoint of that shape in two shards with an index, as its config and headers say."""
    directory.mkdir(parents=True)
    quantization = {"quantization_config": FP8} if fp8 else {}
    (directory / "config.json").write_text(json.dumps(shape.config(**quantization, **keys)))
    layers: Tensors = {}
    for number in range(shape.layers):
        layers |= shape.layer(number, fp8)
    weight_map: dict[str, str] = {}
    for name, tensors in (("layers.safetensors", layers), ("ends.safetensors", shape.ends())):
        write_shard(directory / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def entry_of(checkpoint: Path, **keys: Any) -> Entry:
    return Entry.model_validate(
        {"id": "model", "source": str(checkpoint), "directory": checkpoint.parent, **keys}
    )


@pytest.mark.parametrize(
    ("shape", "published_gib"),
    [(LLAMA_70B, 67.7), (QWEN_72B, 70.0), (SMALL_24B, 23.2)],
    ids=["Llama-70B", "Qwen-72B", "Mistral-24B"],
)
def test_weights_of_fp8_checkpoints(shape: Shape, published_gib: float, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", shape, fp8=True)
    assert weights_bytes(checkpoint) / GIB == pytest.approx(published_gib, abs=0.05)
    assert loaded_bytes(checkpoint) == weights_bytes(checkpoint)
    need = need_of(entry_of(checkpoint, quantization="compressed-tensors"))
    assert need.weights_bytes == weights_bytes(checkpoint)
    assert need.fp8_weights_bytes is None


@pytest.mark.parametrize(
    ("shape", "bf16_gib", "fp8_gib"),
    [(NEMO_12B, 22.8, 12.7), (MIQU_70B, 128.5, 64.7)],
    ids=["Nemo-12B", "Miqu-70B"],
)
def test_weights_quantised_while_loading(
    shape: Shape, bf16_gib: float, fp8_gib: float, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", shape, fp8=False)
    plain = need_of(entry_of(checkpoint))
    assert plain.weights_bytes / GIB == pytest.approx(bf16_gib, abs=0.05)
    assert plain.fp8_weights_bytes is not None
    assert plain.fp8_weights_bytes / GIB == pytest.approx(fp8_gib, abs=0.05)
    quantised = need_of(entry_of(checkpoint, quantization="fp8"))
    assert quantised.weights_bytes == plain.fp8_weights_bytes
    assert quantised.fp8_weights_bytes is None


def test_need_carries_what_the_registry_says(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", NEMO_12B, fp8=False)
    keys = {"tensor_parallel_size": 2, "gpu_memory": "4GiB", "kv_cache_dtype": "fp8"}
    need = need_of(entry_of(checkpoint, max_model_len=32768, pinned=True, **keys))
    assert (need.max_model_len, need.gpus, need.work_bytes) == (32768, 2, WORK_BYTES)
    assert (need.gpu_memory_bytes, need.kv_heads, need.pinned) == (4 * GIB, 8, True)
    assert (need.kv_bytes_per_token, need.fp8_kv_bytes_per_token) == (80 * 1024, None)
    other = need_of(entry_of(checkpoint))
    assert (other.max_model_len, other.fp8_kv_bytes_per_token) == (1024000, 80 * 1024)


def test_adapters_count(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", NEMO_12B, fp8=False)
    adapter = make_adapter(tmp_path / "lora")
    write_shard(adapter / "adapter_model.safetensors", {"lora_A.weight": ("F32", (64, 5120))})
    loras = [{"id": "lora", "source": str(adapter)}]
    more = need_of(entry_of(checkpoint, loras=loras)).weights_bytes
    assert more - need_of(entry_of(checkpoint)).weights_bytes == 64 * 5120 * 4


def test_model_that_is_not_on_this_host(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="model: its size is unknown until it is pulled"):
        need_of(entry)


@pytest.mark.parametrize("shape", [LLAMA_70B, QWEN_72B, MIQU_70B, NEMO_12B, SMALL_24B])
def test_kv_cache_of_grouped_query_attention(shape: Shape) -> None:
    expected = 320 if shape.layers == 80 else 160
    assert kv_bytes_per_token(shape.config()) == expected * 1024
    for dtype in ("fp8", "fp8_e5m2", "int8_per_token_head"):
        assert kv_bytes_per_token(shape.config(), dtype) == expected * 512
    assert kv_bytes_per_token(shape.config(), "bfloat16", "float32") == expected * 1024
    assert kv_bytes_per_token(shape.config(), "auto", "float32") == expected * 2048


def without(*names: str, **keys: Any) -> dict[str, Any]:
    config = LLAMA_70B.config(**keys)
    return {name: value for name, value in config.items() if name not in names}


def nemotron_nas() -> dict[str, Any]:
    """Llama-3.3-Nemotron-Super-49B: 49 of its 80 layers have attention."""
    attention = {"no_op": False, "n_heads_in_group": 8}
    none = {"no_op": True, "n_heads_in_group": None}
    blocks = [{"attention": attention if number < 49 else none} for number in range(80)]
    return without("num_key_value_heads", "head_dim", model_type="deci", block_configs=blocks)


DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "num_attention_heads": 128,
}


@pytest.mark.parametrize(
    ("config", "kib"),
    [
        (without("head_dim"), 320),
        (without("num_key_value_heads"), 320 * 8),
        (without(num_key_value_heads=None, head_dim=None), 320 * 8),
        ({"text_config": without(), "vision_config": {"num_hidden_layers": 24}}, 320),
        (without(sliding_window=4096, layer_types=["sliding_attention"] * 80), 320),
        (without(quantization_config={"kv_cache_scheme": {"num_bits": 8}}), 160),
        ({"text_config": without(quantization_config={"kv_cache_quant_algo": "FP8"})}, 160),
        (nemotron_nas(), 196),
        (DEEPSEEK_V3, 61 * 576 * 2 / 1024),
    ],
    ids=["head", "mha", "null", "nested", "sliding", "scheme", "algorithm", "nas", "latent"],
)
def test_kv_cache_of_other_configs(config: dict[str, Any], kib: float) -> None:
    assert kv_bytes_per_token(config) == kib * 1024


def test_kv_heads_are_what_gpus_can_divide() -> None:
    assert kv_shape(LLAMA_70B.config()).heads == 8
    assert kv_shape(nemotron_nas()).heads == 8
    assert kv_shape(DEEPSEEK_V3).heads == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (without("num_hidden_layers"), "has no 'num_hidden_layers'"),
        (without("num_key_value_heads", "num_attention_heads"), "has no 'num_attention_heads'"),
        (without(head_dim="wide"), "no usable attention shape"),
        (without(num_key_value_heads=[8, 4]), "no usable attention shape"),
        (without("head_dim", num_attention_heads=0), "no usable attention shape"),
        (without(block_configs=[{"attention": {"no_op": True}}]), "no usable attention shape"),
        (without(layer_types=["linear_attention"]), r"cannot size .* \(linear_attention\)"),
        (without(mamba_d_state=16), r"cannot size .* \(mamba_d_state\)"),
        (without(kv_lora_rank=256, model_type="minicpm3"), r"cannot size .* \(kv_lora_rank\)"),
        (DEEPSEEK_V3 | {"index_topk": 2048}, r"cannot size .* \(index_topk\)"),
    ],
)
def test_caches_that_cannot_be_sized_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        kv_bytes_per_token(config)


def test_unknown_cache_type_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not know `kv_cache_dtype: nvfp4`"):
        kv_bytes_per_token(LLAMA_70B.config(), "nvfp4")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "small"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(LLAMA_70B.config()))
    tensors: Tensors = {
        "layers.0.q_proj.weight": ("F32", (8, 4)),
        "layers.0.experts.gate_up_proj": ("BF16", (2, 8, 4)),
        "layers.0.norm.weight": ("BF16", (4,)),
        "layers.0.q_proj.weight_scale": ("F32", (8, 1)),
        "layers.0.packed": ("I32", (8, 2)),
        "embed_tokens.weight": ("BF16", (16, 4)),
        "output.weight": ("F16", (16, 4)),
    }
    write_shard(checkpoint / "model.safetensors", tensors)
    return checkpoint


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 64 + 128 + 8 + 32 + 64 + 128 + 128),
        ({"dtype": "float32"}, 128 + 256 + 16 + 32 + 64 + 256 + 256),
        ({"quantized": True}, 32 + 64 + 8 + 32 + 64 + 128 + 128),
    ],
    ids=["auto", "float32", "quantised"],
)
def test_weights_take_the_form_that_they_are_served_in(
    small: Path, keys: dict[str, Any], expected: int
) -> None:
    assert weights_bytes(small) == 128 + 128 + 8 + 32 + 64 + 128 + 128
    assert loaded_bytes(small, **keys) == expected


def test_checkpoint_that_is_quantised_is_not_quantised_again(small: Path) -> None:
    (small / "config.json").write_text(json.dumps(LLAMA_70B.config(quantization_config=FP8)))
    need = need_of(entry_of(small, quantization="fp8"))
    assert (need.weights_bytes, need.fp8_weights_bytes) == (loaded_bytes(small), None)


def test_only_what_vllm_loads_counts(small: Path) -> None:
    expected = weights_bytes(small)
    write_shard(small / "consolidated.safetensors", {"twice": ("BF16", (64, 64))})
    assert weights_bytes(small) == expected
    write_shard(small / "extra.safetensors", {"more": ("BF16", (64, 64))})
    assert weights_bytes(small) == expected + 64 * 64 * 2
    (small / INDEX).write_text(json.dumps({"weight_map": {"any": "model.safetensors"}}))
    assert weights_bytes(small) == expected
    (small / INDEX).unlink()
    for name in ("model.safetensors", "extra.safetensors"):
        (small / name).unlink()
    assert weights_bytes(small) == 64 * 64 * 2


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def header(text: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(len(text).to_bytes(8, "little") + text)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "is cut short; fetch it again"),
        (lambda path: path.write_bytes(b"\xff" * 16), "its header is longer than the file"),
        (lambda path: path.write_bytes(b""), "is not a safetensors file"),
        (header(b"[{}]"), "is not a safetensors file"),
        (header(b'{"a":{}}'), "is not a safetensors file"),
        (header(b'{"a":{"data_offsets":[]}}'), "is not a safetensors file"),
        (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'), "ends before"),
        (header(b'{"a":{"dtype":"F32","shape":["b"],"data_offsets":[0,0]}}'), "is not a"),
    ],
)
def test_damaged_file_is_named(small: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(small / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}|{message}"):
        weights_bytes(small)


@pytest.mark.parametrize(
    "weight_map", [None, {"a": "../model.safetensors"}, {"a": 5}], ids=["none", "outside", "number"]
)
def test_index_that_names_no_files_of_its_folder(small: Path, weight_map: object) -> None:
    (small / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="does not name files of its folder"):
        weights_bytes(small)


def test_missing_shard_is_named(small: Path) -> None:
    (small / INDEX).write_text(json.dumps({"weight_map": {"a": "lost.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lost\.safetensors: is not a safetensors file"):
        weights_bytes(small)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no safetensors files"):
        weights_bytes(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "does not hold a mapping")],
)
def test_config_that_cannot_be_read(small: Path, text: str, message: str) -> None:
    (small / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        need_of(entry_of(small))


def test_model_without_a_context(small: Path) -> None:
    (small / "config.json").write_text(json.dumps(without("max_position_embeddings")))
    with pytest.raises(CheckpointError, match="names no context: set `max_model_len`"):
        need_of(entry_of(small))
    assert need_of(entry_of(small, max_model_len=4096)).max_model_len == 4096


def test_sizes_are_said_in_gib() -> None:
    assert gib(WORK_BYTES) == "2.5 GiB"
    assert gib(900_296) == "0.9 MiB"
