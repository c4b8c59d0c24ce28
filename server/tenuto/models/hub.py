"""Downloads a repo's checkpoint into the Hugging Face cache, pinned to a commit and checked."""

import glob
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tenuto.errors import CheckpointError, ConfigError, quoted
from tenuto.models.checkpoint import cached_repo, hub_cache

COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights, configs and tokenizers; never a format that can run code (.bin, .pt, .pth, .pkl).
SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"}
# Parts of sentence-transformers' models (`1_Pooling`), and transformers' further templates.
FOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")
# Beside the files themselves: links, the list of files, and what else is written meanwhile.
SPARE_BYTES = 2**26
CHUNK_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size: int
    # Only large files (LFS) have one.
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Pulled:
    directory: Path
    commit: str


def free_bytes_at(directory: Path) -> int:
    """Of the disk that `directory` is on, or will be on once it is made."""
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def pull(
    source: str,
    revision: str | None,
    *,
    adapter: bool = False,
    code: bool = False,
    endpoint: str | None = None,
    free_bytes: Callable[[Path], int] = free_bytes_at,
) -> Pulled:
    """Download the checkpoint, or the LoRA, of a repo. What is there already is checked again.

    `code` takes Python files too, for `trust_remote_code`. `endpoint` is the hub, else HF_ENDPOINT
    or huggingface.co. Errors: `CheckpointError`; `ConfigError` for the endpoint.
    """
    config = "adapter_config.json" if adapter else "config.json"
    hub = _hub(endpoint)
    with _translated(source, revision, _host(hub.endpoint)):
        commit = _resolved(hub, source, revision or "main")
        files = _chosen(source, _listed(hub, source, commit), config, code)
        _check_space(source, files, commit, free_bytes)
        # The config comes last: without it nothing takes the snapshot for a checkpoint.
        others = [file for file in files if file.name != config]
        snapshot = _downloaded(hub, source, commit, [file.name for file in others])
        _verify(source, snapshot, others, config)
        _downloaded(hub, source, commit, [config])
        _write_ref(source, revision or "main", commit)
    return Pulled(snapshot, commit)


def _hub(endpoint: str | None) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ConfigError("downloads need the package huggingface_hub; vLLM brings it") from None
    return HfApi(endpoint=endpoint and endpoint.rstrip("/"))


def _host(endpoint: str) -> str:
    """The hub's name, without the credentials that its address may have."""
    try:
        address = urlsplit(endpoint)
        host, port = address.hostname, address.port
    except ValueError:
        host, port = None, None
    if host is None or address.scheme not in ("http", "https"):
        raise ConfigError("the hub's endpoint is no address such as https://huggingface.co")
    return f"{host}:{port}" if port else host


def _resolved(hub: Any, source: str, revision: str) -> str:
    commit = hub.model_info(source, revision=revision).sha
    # It becomes the name of a folder.
    if commit is None or not COMMIT.fullmatch(commit):
        raise CheckpointError(f"{source}: the hub names no commit for revision {quoted(revision)}")
    return str(commit)


def _listed(hub: Any, source: str, commit: str) -> list[RemoteFile]:
    entries = hub.list_repo_tree(source, recursive=True, revision=commit)
    return [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if hasattr(entry, "size")  # folders have none
    ]


def _chosen(source: str, files: list[RemoteFile], config: str, code: bool) -> list[RemoteFile]:
    suffixes = SUFFIXES | ({".py"} if code else set())
    chosen = [file for file in files if _is_wanted(file.name, suffixes)]
    names = {file.name for file in chosen}
    weights = {name for name in names if name.endswith(".safetensors")}
    if config == "adapter_config.json":
        taken, needed = weights & {"adapter_model.safetensors"}, "adapter_model.safetensors"
    else:
        # Mistral's own copy of the weights would double the download.
        taken = {name for name in weights if not name.startswith("consolidated")} or weights
        needed = "safetensors weights"
    if not taken or config not in names:
        raise CheckpointError(f"{source}: has no {needed if config in names else config}")
    return [file for file in chosen if file.name in taken or file.name not in weights]


def _is_wanted(name: str, suffixes: set[str]) -> bool:
    folder, _, file = name.rpartition("/")
    return Path(file).suffix in suffixes and (not folder or FOLDERS.fullmatch(folder) is not None)


def _check_space(
    source: str, files: list[RemoteFile], commit: str, free_bytes: Callable[[Path], int]
) -> None:
    repo = cached_repo(source)
    missing = sum(file.size for file in files if not _is_cached(repo, commit, file))
    free = free_bytes(hub_cache())
    if missing and free < missing + SPARE_BYTES:
        raise CheckpointError(
            f"{source}: needs {(missing + SPARE_BYTES) / 2**30:.1f} GiB more, and {hub_cache()} "
            f"has {free / 2**30:.1f} GiB free"
        )


def _is_cached(repo: Path, commit: str, file: RemoteFile) -> bool:
    # Another commit may have brought the same bytes.
    has_blob = file.sha256 is not None and (repo / "blobs" / file.sha256).exists()
    return has_blob or (repo / "snapshots" / commit / file.name).exists()


def _downloaded(hub: Any, source: str, commit: str, names: list[str]) -> Path:
    patterns = [glob.escape(name) for name in names]
    return Path(
        hub.snapshot_download(
            source, revision=commit, cache_dir=hub_cache(), allow_patterns=patterns
        )
    )


def _verify(source: str, snapshot: Path, files: list[RemoteFile], config: str) -> None:
    from huggingface_hub.utils import tqdm

    total = sum(file.size for file in files if file.sha256)
    with tqdm(total=total, desc="Verifying", unit="B", unit_scale=True) as progress:
        for file in files:
            path = snapshot / file.name
            if _is_right(path, file, progress.update):
                continue
            _discard(path)
            # The rest alone must not pass for the checkpoint.
            (snapshot / config).unlink(missing_ok=True)
            raise CheckpointError(
                f"{source}: {file.name}: differs from the hub's size or checksum and was removed; "
                "pull again"
            )


def _is_right(path: Path, file: RemoteFile, progress: Callable[[int], object]) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest() == file.sha256


def _discard(path: Path) -> None:
    """Remove a file of the snapshot: every link on the way to it, and its bytes."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _write_ref(source: str, revision: str, commit: str) -> None:
    """What the revision stood for, so that the registry finds the snapshot by it."""
    if revision == commit:
        return
    ref = cached_repo(source) / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    written = ref.with_name(f".{ref.name}.{os.getpid()}")
    written.write_text(commit)
    written.replace(ref)


@contextmanager
def _translated(source: str, revision: str | None, host: str) -> Iterator[None]:
    """The library's exceptions as ours. Their texts may hold signed URLs, and are left out."""
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import logging as hub_logging

    # Its warnings hold URLs too.
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = _reason(error, quoted(revision or "main"), host)
        raise CheckpointError(f"{source}: {reason}") from None
    finally:
        hub_logging.set_verbosity(level)


def _reason(error: Exception, revision: str, host: str) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", "?")
    system = getattr(error, "strerror", None) or type(error).__name__
    # The first type that fits speaks: these are subclasses of one another.
    reasons: list[tuple[Any, str]] = [
        (errors.GatedRepoError, "is gated: accept its terms at the hub, and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, f"{host} has no such repo, or it needs your HF_TOKEN"),
        (errors.RevisionNotFoundError, f"has no revision {revision}"),
        (errors.OfflineModeIsEnabled, "cannot be downloaded while HF_HUB_OFFLINE is set"),
        (errors.HfHubHTTPError, f"{host} answered with status {status}"),
        (errors.HTTPError, f"{host} cannot be reached ({type(error).__name__})"),
        (errors.LocalEntryNotFoundError, f"{host} cannot be reached"),
        (errors.HFValidationError, "is not the name of a repo, such as owner/name"),
    ]
    found = [text for kind, text in reasons if isinstance(error, kind)]
    return found[0] if found else f"cannot be downloaded ({system})"
