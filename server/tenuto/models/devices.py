"""The GPUs that models share, named by hand or found, and which models have room on them."""

import logging
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tenuto.errors import CheckpointError, ConfigError, quoted
from tenuto.models.decisions import Fits
from tenuto.models.planner import Device, Need, placement
from tenuto.models.registry import Entry, bytes_of
from tenuto.models.sizes import need_of

logger = logging.getLogger(__name__)
GPUS = re.compile(r"(.+?) ?(?:[x*\u00d7] ?([1-9]\d?))?")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
NVIDIA_SMI_TIMEOUT_S = 20


def devices_of(texts: Iterable[str], option: str) -> tuple[Device, ...]:
    """Of sizes such as `141GiB` or `80GiBx2`. Errors: `ConfigError`, which names the option."""
    sizes = [size for text in texts for size in _sizes(text, option)]
    return tuple(Device(index, size) for index, size in enumerate(sizes))


def installed_devices() -> tuple[Device, ...]:
    """This host's GPUs, as its driver tells; none without one."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return ()
    try:
        run = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_TIMEOUT_S
        )
        sizes = [int(line) << 20 for line in run.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    return tuple(Device(index, size) for index, size in enumerate(sizes))


def size_bytes(option: str, text: str) -> int:
    try:
        size = int(bytes_of(text))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}, got {quoted(text)}") from None
    if size <= 0:
        raise ConfigError(f"{option}: should be more than 0, got {quoted(text)}")
    return size


def room_on(devices: Sequence[Device], entries: Iterable[Entry]) -> Fits:
    """Whether models lie side by side on these devices.

    One of unknown size has them alone, and one without a KV budget its own: vLLM gives it the rest.
    """
    needs = {}
    for entry in entries:
        try:
            needs[entry.id] = _whole(need_of(entry), devices)
        except CheckpointError as error:
            logger.warning("%s; it is loaded alone", error.message)

    def fits(models: frozenset[str]) -> bool:
        if models <= needs.keys():
            return placement([needs[name] for name in models], devices) is not None
        return len(models) == 1

    return fits


def _whole(need: Need, devices: Sequence[Device]) -> Need:
    """With the KV cache that it takes when nothing bounds it."""
    rest_bytes = min(device.usable_bytes for device in devices) - need.fixed_bytes
    if need.gpu_memory_bytes is not None or rest_bytes < need.context_bytes:
        return need
    return replace(need, gpu_memory_bytes=rest_bytes)


def _sizes(text: str, option: str) -> list[int]:
    match = GPUS.fullmatch(text.strip())
    size = size_bytes(option, match[1] if match else text)
    return [size] * int((match and match[2]) or 1)
