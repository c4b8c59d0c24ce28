"""A small FP8 checkpoint's tensors, and safetensors files written without the library."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenuto.engine.safetensors_file import read_shard

Named = Mapping[str, tuple[str, list[int], bytes]]

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
BITS = {Q: bytes(range(24)), DOWN: bytes(range(100, 120))}
SCALES = {Q: struct.pack("<f", 0.125), DOWN: struct.pack("<f", 3.5)}
TENSORS: Named = {
    Q: ("F8_E4M3", [6, 4], BITS[Q]),
    f"{Q}_scale": ("F32", [], SCALES[Q]),
    DOWN: ("F8_E4M3", [4, 5], BITS[DOWN]),
    f"{DOWN}_scale": ("F32", [1], SCALES[DOWN]),
    EMBEDDING: ("BF16", [3, 4], bytes(24)),
    NORM: ("BF16", [5], bytes(10)),
}


def write_tensors(path: Path, tensors: Named) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, content) in tensors.items():
        ends = [offset, offset + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        offset += len(content)
    encoded = json.dumps(header).encode()
    body = b"".join(content for _, _, content in tensors.values())
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)


def read_tensors(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    found = {}
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        for name, tensor in read_shard(path).tensors.items():
            assert tensor.begin % tensor.element_bytes == 0, "torch reads aligned tensors only"
            found[name] = tensor.dtype, list(tensor.shape), content[tensor.begin : tensor.end]
    return found
