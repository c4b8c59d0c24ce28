"""Writes a 16-bit checkpoint as FP8-Dynamic, in compressed-tensors' format: needs no data, no GPU.

Every scale belongs to one row of one matrix, so that a few rows are in memory at a time.
"""

import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tenuto.engine.checkpoint_files import (
    INDEX,
    copy_other_files,
    free_bytes_at,
    read_json,
    shard_paths,
    sync,
    write_file,
)
from tenuto.engine.fp8 import channelwise
from tenuto.engine.safetensors_file import CHUNK_BYTES, Shard, Tensor, read_shard
from tenuto.errors import CheckpointError, ConfigError

FP8_MAX = 448.0
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Elements that are worked on at once.
BLOCK = 2**23
EMBEDDINGS = re.compile(r"(^|[._])(embed\w*|wte|wpe)\.")
# Linear layers that compressed-tensors' recipes leave: heads, the routers of experts, linear
# attention, and what is beside the language model. Norms and biases have one dimension.
KEPT = re.compile(
    r"(^|[._])(lm_head|score|classifier|router|gate|shared_expert_gate|linear_attn|visual"
    r"|vision\w*|audio\w*|multi_modal_projector)\."
)
# What sentence-transformers and transformers keep in folders.
FOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")
# Their matrices lie the other way round, so that a row is no output channel.
TRANSPOSED = {"gpt2", "openai-gpt"}
SPARE_BYTES = 2**26

# Of a tensor to be written: its type, its shape, and where in the file's data it begins and ends.
Layout = dict[str, tuple[str, tuple[int, ...], int, int]]


def quantize(
    source: Path, destination: Path, *, free_bytes: Callable[[Path], int] = free_bytes_at
) -> None:
    """Errors: `ConfigError` for the destination, `CheckpointError` for the source."""
    config = read_json(source / "config.json")
    shards = [read_shard(path) for path in shard_paths(source)]
    _check_source(source, config, shards)
    parent = destination.absolute().parent
    if destination.exists() or not parent.is_dir():
        raise ConfigError(f"{destination}: {'exists' if parent.is_dir() else 'no such folder'}")
    layouts = [_layout(shard) for shard in shards]
    _check_space(parent, layouts, free_bytes)
    try:
        with _partial(parent / f".{destination.name}.partial") as partial:
            _write_checkpoint(source, config, shards, layouts, partial)
            sync(partial)
            partial.rename(destination)
        sync(parent)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written: {error.strerror}") from error


def is_quantised(name: str, tensor: Tensor) -> bool:
    return (
        _is_matrix(name, tensor)
        and tensor.dtype in DTYPES
        and 0 not in tensor.shape
        and not KEPT.search(name)
        and not EMBEDDINGS.search(name)
    )


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and name.endswith(".weight")


def _check_source(source: Path, config: dict[str, Any], shards: list[Shard]) -> None:
    if config.get("quantization_config"):
        raise CheckpointError(f"{source}: is quantised already")
    if config.get("model_type") in TRANSPOSED:
        raise CheckpointError(f"{source}: {config['model_type']}'s matrices cannot be quantised")
    everything = [item for shard in shards for item in shard.tensors.items()]
    for name, tensor in everything:
        if tensor.dtype.startswith("F8_"):
            raise CheckpointError(f"{source}: is quantised already: {name} is {tensor.dtype}")
        if len(tensor.shape) == 3 and "conv" not in name and not KEPT.search(name):
            raise CheckpointError(f"{source}: {name}: experts in one tensor cannot be quantised")
    if not any(is_quantised(name, tensor) for name, tensor in everything):
        raise CheckpointError(f"{source}: has no 16-bit or 32-bit matrices to quantise")


def _layout(shard: Shard) -> Layout:
    tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for name, tensor in shard.tensors.items():
        if is_quantised(name, tensor):
            tensors[name] = ("F8_E4M3", tensor.shape, math.prod(tensor.shape))
            tensors[f"{name}_scale"] = ("F32", (tensor.shape[0], 1), 4 * tensor.shape[0])
        else:
            tensors[name] = (tensor.dtype, tensor.shape, tensor.num_bytes)
    layout, offset = {}, 0
    # Larger elements first, as the safetensors library does: each tensor then starts aligned.
    for name, (dtype, shape, size) in sorted(
        tensors.items(), key=lambda item: -(item[1][2] // max(1, math.prod(item[1][1])))
    ):
        layout[name] = (dtype, shape, offset, offset + size)
        offset += size
    return layout


def _check_space(parent: Path, layouts: list[Layout], free_bytes: Callable[[Path], int]) -> None:
    needed, free = sum(map(_size, layouts)) + SPARE_BYTES, free_bytes(parent)
    if free < needed:
        raise CheckpointError(
            f"{parent}: has {free / 2**30:.1f} GiB free, and the quantised checkpoint needs "
            f"{needed / 2**30:.1f} GiB"
        )


def _size(layout: Layout) -> int:
    return max((end for *_, end in layout.values()), default=0)


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """An empty directory of this process alone; what it holds is removed unless it was renamed."""
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A killed process may have left some.
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        raise ConfigError(f"{directory}: another process is writing it") from None
    finally:
        os.close(descriptor)


def _write_checkpoint(
    source: Path, config: dict[str, Any], shards: list[Shard], layouts: list[Layout], out: Path
) -> None:
    total = sum(shard.num_bytes for shard in shards)
    with tqdm(total=total, desc="Quantising", unit="B", unit_scale=True, disable=None) as progress:
        for shard, layout in zip(shards, layouts, strict=True):
            _write_shard(shard, layout, out / shard.path.name, progress.update)
    if (source / INDEX).is_file() or len(shards) > 1:
        write_file(out / INDEX, json.dumps(_index(shards, layouts), indent=2).encode())
    quantization = channelwise(_ignored(shards))
    text = json.dumps({**config, "quantization_config": quantization}, indent=2)
    write_file(out / "config.json", text.encode())
    copy_other_files(source, out)
    for folder in source.iterdir():
        if folder.is_dir() and FOLDERS.fullmatch(folder.name):
            shutil.copytree(folder, out / folder.name)


def _index(shards: list[Shard], layouts: list[Layout]) -> dict[str, Any]:
    pairs = list(zip(shards, layouts, strict=True))
    weight_map = {name: shard.path.name for shard, layout in pairs for name in layout}
    total = sum(map(_size, layouts))
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _ignored(shards: list[Shard]) -> list[str]:
    """The linear layers that stay as they are: all others are taken for quantised."""
    kept = {
        name.removesuffix(".weight")
        for shard in shards
        for name, tensor in shard.tensors.items()
        if _is_matrix(name, tensor) and not is_quantised(name, tensor)
    }
    return sorted({"lm_head"} | {name for name in kept if not EMBEDDINGS.search(f"{name}.")})


def _write_shard(
    shard: Shard, layout: Layout, path: Path, progress: Callable[[int], object]
) -> None:
    header: dict[str, Any] = {"__metadata__": shard.metadata}
    for name, (dtype, shape, begin, end) in layout.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    with shard.path.open("rb") as source, path.open("wb") as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in shard.tensors.items():
            target.seek(start + layout[name][2])
            if is_quantised(name, tensor):
                scales = _write_matrix(source, name, tensor, target, progress)
                target.seek(start + layout[f"{name}_scale"][2])
                target.write(scales)
            else:
                for chunk in _chunks(source, tensor, CHUNK_BYTES):
                    target.write(chunk)
                    progress(len(chunk))
        target.flush()
        os.fsync(target.fileno())


def _write_matrix(
    source: BufferedReader,
    name: str,
    tensor: Tensor,
    target: BufferedWriter,
    progress: Callable[[int], object],
) -> bytes:
    """Write the FP8 values at the target's position, and return the scales."""
    scales = b""
    columns = tensor.shape[1]
    row_bytes = columns * tensor.element_bytes
    for chunk in _chunks(source, tensor, max(1, BLOCK // columns) * row_bytes):
        rows = torch.frombuffer(chunk, dtype=DTYPES[tensor.dtype]).view(-1, columns)
        values, scale = quantised(rows)
        if not scale.isfinite().all():
            raise CheckpointError(f"{name}: has a value that is not finite")
        target.write(values.view(torch.uint8).numpy().tobytes())
        scales += scale.numpy().tobytes()
        progress(len(chunk))
    return scales


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values, and one float32 scale per row."""
    exact = rows.float()
    scale = (exact.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp(min=1e-12)
    return (exact / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def _chunks(source: BufferedReader, tensor: Tensor, size: int) -> Iterator[bytearray]:
    source.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        chunk = bytearray(min(left, size))
        if source.readinto(chunk) != len(chunk):
            raise CheckpointError(f"{source.name}: became shorter while it was read")
        yield chunk
        left -= len(chunk)
