"""Reads and writes safetensors files as raw bytes, a chunk at a time: no torch, no numpy."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tenuto.errors import CheckpointError

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Tensor:
    """Bytes `begin` to `end` of a file; in a file to be written, they are repeated."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    repeat: int = 1

    @property
    def num_bytes(self) -> int:
        return (self.end - self.begin) * self.repeat

    @property
    def element_bytes(self) -> int:
        return self.num_bytes // max(1, math.prod(self.shape))


@dataclass(frozen=True)
class Shard:
    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_shard(path: Path) -> Shard:
    """The file's header; its tensors are left where they are."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_bytes))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(facts, 8 + header_bytes) for name, facts in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not a safetensors file: {error}") from error
    if any(tensor.end > size for tensor in tensors.values()):
        raise CheckpointError(f"{path}: is cut short; fetch it again.")
    return Shard(path, tensors, metadata)


def _tensor(facts: dict[str, Any], start: int) -> Tensor:
    begin, end = facts["data_offsets"]
    return Tensor(facts["dtype"], tuple(facts["shape"]), start + begin, start + end)


def write_shard(shard: Shard, path: Path) -> None:
    """Copy `shard` to `path`, and return once it is on the disk."""
    # Larger elements first, as the safetensors library does: each tensor then starts aligned.
    tensors = sorted(
        shard.tensors.items(), key=lambda item: (-item[1].element_bytes, item[1].begin)
    )
    header: dict[str, Any] = {"__metadata__": shard.metadata}
    offset = 0
    for name, tensor in tensors:
        ends = [offset, offset + tensor.num_bytes]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": ends}
        offset = ends[1]
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with shard.path.open("rb") as source, path.open("wb") as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in tensors:
            _copy(source, tensor, target)
        target.flush()
        os.fsync(target.fileno())


def _copy(source: BinaryIO, tensor: Tensor, target: BinaryIO) -> None:
    source.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        chunk = source.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise CheckpointError(f"{source.name}: became shorter while it was read.")
        target.write(chunk * tensor.repeat)
        left -= len(chunk)
