"""The memory that models share, of GPUs and of the host: named by hand or found."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tenuto.errors import ConfigError, quoted
from tenuto.models.planner import Device
from tenuto.models.registry import bytes_of

GPUS = re.compile(r"(.+?) ?(?:[x*\u00d7] ?([1-9]\d?))?")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits")
NVIDIA_SMI_TIMEOUT_S = 20
# Sleeping weights are pinned: the system needs the rest of its memory for everything else.
SLEEP_SHARE = 0.8
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def devices_of(texts: Iterable[str], option: str) -> tuple[Device, ...]:
    """Of sizes such as `141GiB` or `80GiBx2`. Errors: `ConfigError`, which names the option."""
    sizes = [size for text in texts for size in _sizes(text, option)]
    return tuple(Device(index, size) for index, size in enumerate(sizes))


def installed_devices() -> tuple[Device, ...]:
    """This host's GPUs, as its driver tells; none without one. Engines count those that
    CUDA_VISIBLE_DEVICES leaves them, in its order, and so does this."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return ()
    try:
        run = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_TIMEOUT_S
        )
        rows = [line.split(", ") for line in run.stdout.splitlines()]
        sizes = {uuid: int(mib) << 20 for uuid, mib in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = list(sizes) if visible is None else list(_named(visible, list(sizes)))
    return tuple(Device(index, sizes[uuid]) for index, uuid in enumerate(seen))


def _named(visible: str, uuids: Sequence[str]) -> Iterator[str]:
    """By number or by the beginning of a UUID; as for CUDA, the first that is neither ends it."""
    for name in filter(None, visible.replace(" ", "").split(",")):
        by_number = uuids[int(name) : int(name) + 1] if name.isdecimal() else []
        found = by_number or [uuid for uuid in uuids if uuid.startswith(name)]
        if not found:
            return
        yield found[0]


def sleep_bytes_of(text: str | None, option: str) -> int:
    """Of the host, for sleeping models: as named, else a share of what it has.

    Errors: `ConfigError`, which names the option.
    """
    if text is not None:
        return size_bytes(option, text)
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(host_bytes, _container_bytes() or host_bytes) * SLEEP_SHARE)


def _container_bytes() -> int | None:
    """What the container may have of the host, where it is limited."""
    try:
        return int(CGROUP_LIMIT.read_text())
    except (OSError, ValueError):
        return None


def size_bytes(option: str, text: str) -> int:
    try:
        size = int(bytes_of(text))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}, got {quoted(text)}") from None
    if size <= 0:
        raise ConfigError(f"{option}: should be more than 0, got {quoted(text)}")
    return size


def _sizes(text: str, option: str) -> list[int]:
    match = GPUS.fullmatch(text.strip())
    size = size_bytes(option, match[1] if match else text)
    return [size] * int((match and match[2]) or 1)
