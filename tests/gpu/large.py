"""A checkpoint as large as this machine can hold, with random weights: its layers are all alike."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tenuto.models.devices import installed_devices
from tests.live.conftest import DEMO

FP8_MAX = 448.0
# Of what is free. The files' pages and the weights that sleep are in memory side by side, as the
# weights and the KV cache are on the GPU.
DISK_SHARE, MEMORY_SHARE, GPU_SHARE = 0.8, 0.4, 0.5
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Of a Llama. Heads have 128 values, and four of them share a KV head."""

    hidden: int
    intermediate: int
    max_layers: int

    @property
    def layer_bytes(self) -> int:
        return self.hidden * (self.hidden * 5 // 2 + 3 * self.intermediate)


# As the 70B models, and for a rehearsal without a GPU.
LARGE, SMALL = Shape(8192, 28672, 80), Shape(512, 1024, 4)


def make_large(directory: Path, shape: Shape) -> int:
    """An FP8-Dynamic checkpoint of as many layers as there is room for. Returns the bytes of its
    weights."""
    directory.mkdir()
    memory_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    disk_bytes = shutil.disk_usage(directory).free
    gpu_bytes = [device.total_bytes * GPU_SHARE for device in installed_devices()[:1]]
    room = min(disk_bytes * DISK_SHARE, memory_bytes * MEMORY_SHARE, *gpu_bytes)
    num_layers = min(shape.max_layers, int(room / shape.layer_bytes))
    for file in DEMO.glob("checkpoint/*token*"):
        shutil.copy(file, directory)
    config = json.loads((DEMO / "checkpoint" / "config.json").read_text())
    heads = shape.hidden // 128
    config |= {"hidden_size": shape.hidden, "intermediate_size": shape.intermediate}
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads // 4, "head_dim": 128}
    config |= {"num_hidden_layers": num_layers}
    (directory / "config.json").write_text(json.dumps(config))
    _write_weights(directory, shape, num_layers, config["vocab_size"])
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _write_weights(directory: Path, shape: Shape, num_layers: int, vocab_size: int) -> None:
    torch.manual_seed(0)
    ends = {"model.embed_tokens.weight": torch.randn(vocab_size, shape.hidden).bfloat16()}
    ends["model.norm.weight"] = torch.ones(shape.hidden).bfloat16()
    layer = _layer(shape)
    shards = {"ends.safetensors": ends}
    for number in range(num_layers):
        named = {f"model.layers.{number}.{name}": tensor for name, tensor in layer.items()}
        shards[f"layer-{number}.safetensors"] = named
    for name, tensors in shards.items():
        save_file(tensors, directory / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _layer(shape: Shape) -> Tensors:
    hidden, inner = shape.hidden, shape.intermediate
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layer: Tensors = {}
    for name, size in sizes.items():
        weights = torch.randn(size) * size[1] ** -0.5
        scales = weights.abs().amax(dim=1, keepdim=True) / FP8_MAX
        layer[f"{name}.weight"] = (weights / scales).to(torch.float8_e4m3fn)
        layer[f"{name}.weight_scale"] = scales
    for name in ("input_layernorm", "post_attention_layernorm"):
        layer[f"{name}.weight"] = torch.ones(hidden).bfloat16()
    return layer
