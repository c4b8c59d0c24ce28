"""Rewrites an FP8 checkpoint with one scale per tensor as compressed-tensors with one per channel.

vLLM has no CPU kernel for the first, and one for the second. The FP8 bits stay as they are, and
the scale is repeated, so nothing is lost.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tenuto.engine.checkpoint_files import (
    INDEX,
    copy_other_files,
    free_bytes_at,
    read_json,
    shard_paths,
    sync,
    write_file,
)
from tenuto.engine.safetensors_file import Shard, Tensor, read_shard, write_shard
from tenuto.errors import CheckpointError

FP8 = "F8_E4M3"
# Without a counterpart in the twin: static activations, blocks, and AutoFP8's KV cache scales.
UNSUPPORTED_TENSORS = (".input_scale", ".weight_scale_inv", ".output_scale")

logger = logging.getLogger(__name__)


def compressed_tensors_twin(
    checkpoint: Path, cache_dir: Path, *, free_bytes: Callable[[Path], int] = free_bytes_at
) -> Path:
    """The directory of `checkpoint`'s compressed-tensors twin, written if it is not there yet."""
    config = read_json(checkpoint / "config.json")
    _check_scheme(checkpoint, config.get("quantization_config") or {})
    shards = [read_shard(path) for path in shard_paths(checkpoint)]
    rewritten = _repeat_scales(shards)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        twin = cache_dir / f"{checkpoint.name}-{_key(checkpoint, shards, cache_dir)}"
        with _locked(cache_dir / f".{twin.name}.lock"):
            if twin.is_dir():
                copy_other_files(checkpoint, twin)
            else:
                _check_space(rewritten, cache_dir, free_bytes)
                logger.info("Writing %s once; a large checkpoint takes minutes.", twin)
                _write_twin(checkpoint, config, rewritten, twin)
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: cannot be rewritten: {error}") from error
    return twin


def _check_scheme(checkpoint: Path, quantization: dict[str, Any]) -> None:
    method = quantization.get("quant_method")
    if method != "fp8":
        raise CheckpointError(f"{checkpoint}: quant_method is {method!r}; only 'fp8' is rewritten.")
    if quantization.get("weight_block_size"):
        raise CheckpointError(
            f"{checkpoint}: FP8 with one scale per block (weight_block_size) needs a GPU."
        )
    if quantization.get("activation_scheme") != "dynamic":
        raise CheckpointError(
            f"{checkpoint}: FP8 with activation_scheme "
            f"{quantization.get('activation_scheme')!r} needs a GPU; only 'dynamic' is rewritten."
        )


def _repeat_scales(shards: list[Shard]) -> list[Shard]:
    everything = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    for name, tensor in everything.items():
        if name.endswith(UNSUPPORTED_TENSORS):
            raise CheckpointError(f"{name}: FP8 with such a tensor needs a GPU.")
        if tensor.dtype.startswith("F8_") and not _is_scaled_matrix(name, everything):
            raise CheckpointError(f"{name}: is not an FP8 matrix with one scale; it needs a GPU.")
    return [
        Shard(
            shard.path,
            {name: _repeated(name, tensor, everything) for name, tensor in shard.tensors.items()},
            shard.metadata,
        )
        for shard in shards
    ]


def _is_scaled_matrix(name: str, everything: dict[str, Tensor]) -> bool:
    tensor, scale = everything[name], everything.get(f"{name}_scale")
    return (
        tensor.dtype == FP8
        and len(tensor.shape) == 2
        and name.endswith(".weight")
        and scale is not None
        and math.prod(scale.shape) == 1
    )


def _repeated(name: str, tensor: Tensor, everything: dict[str, Tensor]) -> Tensor:
    weight = everything.get(name.removesuffix("_scale"))
    if not name.endswith(".weight_scale") or weight is None or weight.dtype != FP8:
        return tensor
    channels = weight.shape[0]
    return Tensor(tensor.dtype, (channels, 1), tensor.begin, tensor.end, repeat=channels)


def _key(checkpoint: Path, shards: list[Shard], cache_dir: Path) -> str:
    parts = {shard.path.name: _remembered_hash(shard.path, cache_dir) for shard in shards}
    parts["config.json"] = _hash(checkpoint / "config.json")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _remembered_hash(path: Path, cache_dir: Path) -> str:
    """A file's sha256, computed once: at disk speed a 70 GB checkpoint takes a minute or more.

    Size, inode and the modification time in nanoseconds stand for the content, as they do for
    rsync and git. An update lost between two processes costs one more reading, nothing else.
    """
    memory = cache_dir / "hashes.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(CheckpointError):
        known = read_json(memory)
    facts = path.stat()
    stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
    name = str(path.resolve())
    if known.get(name, [None])[0] != stamp:
        known[name] = [stamp, _hash(path)]
        write_file(memory, json.dumps(known, indent=1).encode())
    return str(known[name][1])


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_space(shards: list[Shard], cache_dir: Path, free_bytes: Callable[[Path], int]) -> None:
    needed = sum(shard.num_bytes for shard in shards) + 2**26
    free = free_bytes(cache_dir)
    if free < needed:
        raise CheckpointError(
            f"{cache_dir}: has {free / 2**30:.1f} GiB free, and the checkpoint's rewritten "
            f"weights need {needed / 2**30:.1f} GiB."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process writes, others wait for its result; the lock dies with its process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_twin(checkpoint: Path, config: dict[str, Any], shards: list[Shard], twin: Path) -> None:
    partial = twin.with_name(f".{twin.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for shard in shards:
            write_shard(shard, partial / shard.path.name)
        if (checkpoint / INDEX).is_file():
            index = read_json(checkpoint / INDEX)
            total = sum(shard.num_bytes for shard in shards)
            index["metadata"] = {**index.get("metadata", {}), "total_size": total}
            write_file(partial / INDEX, json.dumps(index, indent=2).encode())
        twin_config = {**config, "quantization_config": _quantization(config, shards)}
        write_file(partial / "config.json", json.dumps(twin_config, indent=2).encode())
        copy_other_files(checkpoint, partial)
        sync(partial)
        partial.rename(twin)
        sync(twin.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _quantization(config: dict[str, Any], shards: list[Shard]) -> dict[str, Any]:
    original = config["quantization_config"]
    ignored = {"lm_head", *(original.get("ignored_layers") or [])}
    ignored |= set(original.get("modules_to_not_convert") or [])
    # compressed-tensors takes every linear layer as quantised that it is not told to ignore.
    for shard in shards:
        for name, tensor in shard.tensors.items():
            if name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype != FP8:
                ignored.add(name.removesuffix(".weight"))
    return channelwise(sorted(ignored))


def channelwise(ignored: list[str]) -> dict[str, Any]:
    """`quantization_config` of FP8-Dynamic in compressed-tensors: a scale per output channel."""
    common = {"num_bits": 8, "type": "float", "symmetric": True}
    linear = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": "channel", "dynamic": False},
        "input_activations": {**common, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": linear},
        "ignore": ignored,
    }
