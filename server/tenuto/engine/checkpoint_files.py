"""A checkpoint's directory: what it holds, and how another one is written from it."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tenuto.errors import CheckpointError

INDEX = "model.safetensors.index.json"
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


def read_json(path: Path) -> dict[str, Any]:
    """Errors: `CheckpointError` for anything but a JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object.")
    return value


def shard_paths(checkpoint: Path) -> list[Path]:
    """Its safetensors files, by name. Errors: `CheckpointError` without any, and for an index that
    names one elsewhere."""
    if (checkpoint / INDEX).is_file():
        names = set(read_json(checkpoint / INDEX).get("weight_map", {}).values())
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{checkpoint / INDEX}: names a file in another directory.")
        paths = [checkpoint / name for name in sorted(names)]
    else:
        paths = sorted(checkpoint.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{checkpoint}: has no safetensors weights.")
    return paths


def copy_other_files(checkpoint: Path, destination: Path) -> None:
    """Tokenizer, templates and the like; those that changed since the last time, too."""
    for source in sorted(checkpoint.iterdir()):
        if not source.is_file() or source.name in {"config.json", INDEX}:
            continue
        if source.suffix in WEIGHT_SUFFIXES:
            continue
        target, content = destination / source.name, source.read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            write_file(target, content)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file at once, and only after its content is on the disk."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def sync(directory: Path) -> None:
    """Return when the names in it are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes_at(directory: Path) -> int:
    return shutil.disk_usage(directory).free
