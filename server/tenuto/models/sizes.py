"""What a model takes of a GPU and of a host, read from its checkpoint; no weights are loaded."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenuto.errors import CheckpointError
from tenuto.models.planner import Need
from tenuto.models.registry import Entry

WORK_BYTES = 5 * 2**29
"""Of each GPU beside weights and KV cache: the CUDA context, activations of the largest batch, CUDA
graphs. An estimate: the upper end of the 2 to 2.5 GiB that are usual with vLLM 0.32's defaults for
models of 12 B to 72 B; a large `max_num_batched_tokens` takes more, a small model less."""

INDEX = "model.safetensors.index.json"
# The safetensors library takes no longer header either.
MAX_HEADER_BYTES = 100_000_000
FLOATS = {"F64", "F32", "F16", "BF16"}
# vLLM's names that make one byte of each weight of a 16-bit checkpoint while it loads. Others
# leave many weights as they are: they are taken for that, so that the plan errs upwards.
ONE_BYTE_QUANTIZATIONS = {"fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block", "mxfp8"}
KV_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Layers whose cache does not grow by the token, or is compressed: nothing here can size them.
UNKNOWN_CACHES = {
    "attn_type_list",
    "compress_ratios",
    "hybrid_override_pattern",
    "index_topk",
    "layers_block_type",
    "mamba_d_state",
}
# Of the types with a `kv_lora_rank`, those for which vLLM caches the latent alone.
LATENT_TYPES = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2", "longcat_flash"}
KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def need_of(entry: Entry) -> Need:
    """Errors: `CheckpointError`, also for a model that is not on this host."""
    if entry.checkpoint is None:
        raise CheckpointError(f"{entry.id}: its size is unknown until it is pulled")
    config = _config(entry.checkpoint)
    kv_bytes = kv_bytes_per_token(config, entry.kv_cache_dtype, entry.dtype)
    fp8_kv_bytes = kv_bytes_per_token(config, "fp8", entry.dtype)
    weights = _loaded(entry, config, entry.quantization)
    fp8_weights = _loaded(entry, config, entry.quantization or "fp8")
    return Need(
        model_id=entry.id,
        weights_bytes=weights,
        kv_bytes_per_token=kv_bytes,
        kv_heads=kv_shape(config).heads,
        max_model_len=entry.max_model_len or _model_context(config),
        work_bytes=WORK_BYTES,
        tensor_parallel_size=entry.tensor_parallel_size,
        pipeline_parallel_size=entry.pipeline_parallel_size,
        gpu_memory_bytes=entry.gpu_memory,
        fp8_weights_bytes=fp8_weights if fp8_weights < weights else None,
        fp8_kv_bytes_per_token=fp8_kv_bytes if fp8_kv_bytes < kv_bytes else None,
        pinned=entry.pinned,
    )


def weights_bytes(checkpoint: Path) -> int:
    """Of all tensors as they lie in the files. Errors: `CheckpointError`."""
    return sum(tensor.num_bytes for _, tensor in tensors_of(checkpoint))


def loaded_bytes(checkpoint: Path, *, quantized: bool = False, dtype: str = "auto") -> int:
    """Of all weights on the GPU: what is not quantised yet takes the form that vLLM gives it.

    Quantising while loading makes one byte of each element of a Linear layer; embeddings, the
    language model's head and norms stay. Errors: `CheckpointError`.
    """
    float_bytes = 4 if dtype == "float32" else 2
    total = 0
    for name, tensor in tensors_of(checkpoint):
        # Scales of quantised weights keep their precision.
        if tensor.dtype not in FLOATS or "scale" in name:
            total += tensor.num_bytes
        else:
            linear = quantized and _is_linear(name, tensor)
            total += tensor.elements * (1 if linear else float_bytes)
    return total


def tensors_of(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files that vLLM loads, by name. Errors: `CheckpointError`."""
    for path in _shards(checkpoint):
        yield from _header(path).items()


@dataclass(frozen=True, slots=True)
class KvShape:
    """`elements` of one token in all layers; `heads`, into which GPUs can divide them."""

    elements: int
    heads: int


def kv_bytes_per_token(
    config: dict[str, Any], kv_cache_dtype: str = "auto", dtype: str = "auto"
) -> int:
    """Of all layers, on all GPUs together. Errors: `CheckpointError`.

    An upper bound where some layers see a sliding window: vLLM then keeps less for a long context.
    """
    return kv_shape(config).elements * _kv_element_bytes(config, kv_cache_dtype, dtype)


def kv_shape(config: dict[str, Any]) -> KvShape:
    """Grouped-query attention, DeciLM's layers of different heads, and the latent of multi-head
    latent attention. Errors: `CheckpointError`."""
    text = _text_config(config)
    _refuse_unknown_cache(text)
    try:
        if text.get("kv_lora_rank"):
            latent = int(text["kv_lora_rank"]) + int(text["qk_rope_head_dim"])
            return KvShape(int(text["num_hidden_layers"]) * latent, 1)
        heads = _kv_heads(text)
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        # Two for keys and values.
        return KvShape(2 * sum(heads) * int(head_dim), min(filter(None, heads)))
    except KeyError as error:
        raise CheckpointError(f"the model's config.json has no {error}") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise CheckpointError("the model's config.json has no usable attention shape") from None


def _kv_heads(text: dict[str, Any]) -> list[int]:
    """Of each layer."""
    if "block_configs" not in text:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        return [heads] * text["num_hidden_layers"]
    # DeciLM (nemotron_nas): some layers have no attention, and the others not all the same.
    blocks = [block["attention"] for block in text["block_configs"]]
    return [
        0 if block.get("no_op") else text["num_attention_heads"] // block["n_heads_in_group"]
        for block in blocks
    ]


def _refuse_unknown_cache(text: dict[str, Any]) -> None:
    unknown = UNKNOWN_CACHES & text.keys()
    unknown |= set(text.get("layer_types") or ()) - KNOWN_LAYERS
    if text.get("kv_lora_rank") and text.get("model_type") not in LATENT_TYPES:
        unknown.add("kv_lora_rank")
    if unknown:
        what = ", ".join(sorted(unknown))
        raise CheckpointError(f"the planner cannot size the cache of this architecture ({what})")


def _kv_element_bytes(config: dict[str, Any], kv_cache_dtype: str, dtype: str) -> int:
    if kv_cache_dtype == "auto":
        quantization = _quantization(config)
        # vLLM takes a checkpoint's own word for its cache: these are 8-bit ones.
        if quantization.get("kv_cache_scheme") or quantization.get("kv_cache_quant_algo"):
            return 1
        # Models in float32 are served in 16 bits unless the registry says otherwise.
        return 4 if dtype == "float32" else 2
    if kv_cache_dtype.startswith(("fp8", "int8")):
        return 1
    if kv_cache_dtype not in KV_ELEMENT_BYTES:
        raise CheckpointError(f"the planner does not know `kv_cache_dtype: {kv_cache_dtype}`")
    return KV_ELEMENT_BYTES[kv_cache_dtype]


def _loaded(entry: Entry, config: dict[str, Any], quantization: str | None) -> int:
    """With the entry's LoRAs, whose room is at least their files' size."""
    assert entry.checkpoint is not None
    quantized = quantization in ONE_BYTE_QUANTIZATIONS and not _quantization(config)
    model = loaded_bytes(entry.checkpoint, quantized=quantized, dtype=entry.dtype)
    return model + sum(weights_bytes(adapter) for adapter in entry.adapters.values())


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    """Of the checkpoint; empty where its weights are plain."""
    name = "quantization_config"
    return config.get(name) or _text_config(config).get(name) or {}


def _is_linear(name: str, tensor: Tensor) -> bool:
    """Experts that lie in one tensor have three dimensions."""
    kept = "embed" in name or "lm_head" in name or name == "output.weight"
    return len(tensor.shape) in (2, 3) and not kept


def _model_context(config: dict[str, Any]) -> int:
    context = _text_config(config).get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        raise CheckpointError("the model's config.json names no context: set `max_model_len`")
    return context


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Models that also see or hear keep their language model's shape apart."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _config(checkpoint: Path) -> dict[str, Any]:
    return _json(checkpoint / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: does not hold a mapping")
    return found


def _shards(checkpoint: Path) -> list[Path]:
    """As vLLM chooses: what the index names, or all; of two formats in one folder not both."""
    index = checkpoint / INDEX
    if index.is_file():
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(n)).name != n for n in names.values()):
            raise CheckpointError(f"{index}: does not name files of its folder")
        return [checkpoint / name for name in sorted(set(names.values()))]
    found = sorted(checkpoint.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{checkpoint}: has no safetensors files")
    return [path for path in found if not path.name.startswith("consolidated")] or found


def _header(path: Path) -> dict[str, Tensor]:
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(file_bytes, MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        ends = [facts["data_offsets"][1] for facts in header.values()]
        tensors = {name: _tensor(facts) for name, facts in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: is not a safetensors file: {error}") from None
    if max(ends, default=0) + 8 + header_bytes > file_bytes:
        raise CheckpointError(f"{path}: is cut short; fetch it again.")
    return tensors


def _tensor(facts: dict[str, Any]) -> Tensor:
    begin, end = facts["data_offsets"]
    if not 0 <= begin <= end:
        raise ValueError("a tensor ends before it begins")
    return Tensor(str(facts["dtype"]), tuple(int(size) for size in facts["shape"]), end - begin)
