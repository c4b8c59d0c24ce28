"""Where a checkpoint lies on this host. Nothing here opens a connection."""

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from tenuto.errors import CheckpointError


def is_directory_source(source: str) -> bool:
    return source.startswith(("/", "./", "../", "~"))


def locate(
    source: str, revision: str | None, beside: Path, config: str = "config.json"
) -> Path | None:
    """The directory of `source`, or None when its `config` is not on this host."""
    if is_directory_source(source):
        directory = beside / Path(source).expanduser()
        return directory.resolve() if (directory / config).is_file() else None
    return _cached(source, revision, config)


def locate_adapter(source: str, beside: Path) -> Path | None:
    """The directory of a LoRA in peft's format, or None when it is not on this host."""
    directory = locate(source, None, beside, "adapter_config.json")
    # Without this file vLLM would take a pickled one.
    complete = directory is not None and (directory / "adapter_model.safetensors").is_file()
    return directory if complete else None


def adapter_rank(adapter: Path) -> int:
    """The highest rank of a LoRA's matrices. Errors: `CheckpointError`."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{adapter}: adapter_config.json names no rank `r`") from None


def generation_defaults(checkpoint: Path, names: Container[str]) -> dict[str, Any]:
    """Those of `names` that the checkpoint's generation_config.json sets."""
    path = checkpoint / "generation_config.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name in names and value is not None}


def hub_cache() -> Path:
    """The folder of the Hugging Face cache."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def cached_repo(source: str) -> Path:
    """Where the Hugging Face cache has all of a repo: `blobs`, `refs` and `snapshots`."""
    return hub_cache() / f"models--{source.replace('/', '--')}"


def _cached(source: str, revision: str | None, config: str) -> Path | None:
    """The snapshot in the Hugging Face cache whose download is complete."""
    repo = cached_repo(source)
    ref = repo / "refs" / (revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else revision
    if commit is None:
        return None
    snapshot = repo / "snapshots" / commit
    complete = (snapshot / config).is_file() and any(snapshot.glob("*.safetensors"))
    return snapshot if complete else None
