"""Where each model lies: its GPUs and KV-cache bytes as planned, and host memory for sleepers."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tenuto.engine.types import EngineSpec
from tenuto.errors import CheckpointError
from tenuto.models.decisions import Ids
from tenuto.models.planner import ASLEEP_BYTES, Device, Host, Need, placement, together
from tenuto.models.registry import Entry
from tenuto.models.sizes import need_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """`devices`: none named, all are seen. Without `kv_bytes` of each, the engine's own default."""

    devices: tuple[int, ...] = ()
    kv_bytes: int | None = None


def placed(entry: Entry, place: Place) -> EngineSpec:
    """How the entry's engine starts there."""
    spec = entry.spec()
    return replace(
        spec,
        devices=place.devices,
        kv_cache_memory_bytes=place.kv_bytes or spec.kv_cache_memory_bytes,
        sleep=entry.sleep_level > 0,
    )


class Room:
    """A host without GPUs, or one whose memory nobody limits."""

    def fits(self, awake: Ids, asleep: Ids) -> bool:
        return True

    def plan(self, entries: Iterable[Entry]) -> None:
        """These are the models from now on; who has a place keeps it."""

    def place(self, model_id: str, awake: Ids, asleep: Ids) -> Place:
        """For a model that `fits`; it has the place until it leaves."""
        return Place()

    def slept(self, model_id: str) -> None:
        """The model's engine has put its weights into the host's memory."""

    def vacate(self, model_id: str) -> None:
        """The model's engine has ended."""


class GpuRoom(Room):
    """One of unknown size has the GPUs alone. A `rehearsal` is on a host that lacks the GPUs: it
    decides alike, and tells the engines nothing of it."""

    def __init__(self, host: Host, *, rehearsal: bool = False) -> None:
        self._host = host
        self._rehearsal = rehearsal
        self._planned: dict[str, Need] = {}
        self._asleep_bytes: dict[str, int] = {}
        # Of engines that live, whatever was planned since.
        self._needs: dict[str, Need] = {}
        self._placed: dict[str, tuple[int, ...]] = {}
        # Pinned memory is not given back while the process lives (vLLM's issue 16663).
        self._have_slept: set[str] = set()

    def plan(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        known = [need for entry in entries if (need := _known(entry)) is not None]
        budgets = together(known, self._host).kv_bytes
        self._planned = {
            need.model_id: replace(need, gpu_memory_bytes=budgets.get(need.model_id))
            for need in known
        }
        levels = {entry.id: entry.sleep_level for entry in entries}
        self._asleep_bytes = {
            need.model_id: need.weights_bytes if levels[need.model_id] == 1 else 0 for need in known
        }

    def fits(self, awake: Ids, asleep: Ids) -> bool:
        if not awake | asleep <= self._planned.keys() | self._needs.keys():
            return len(awake) == 1 and not asleep
        if sum(map(self._host_bytes, asleep | awake & self._have_slept)) > self._host.sleep_bytes:
            return False
        return self._placement(awake, asleep) is not None

    def place(self, model_id: str, awake: Ids, asleep: Ids) -> Place:
        if model_id not in self._planned:
            return Place()
        found = self._placement(awake | {model_id}, asleep) or {}
        self._placed[model_id] = found[model_id]
        need = self._needs[model_id] = self._planned[model_id]
        return Place() if self._rehearsal else Place(found[model_id], need.gpu_memory_bytes)

    def slept(self, model_id: str) -> None:
        self._have_slept.add(model_id)

    def vacate(self, model_id: str) -> None:
        self._have_slept.discard(model_id)
        self._placed.pop(model_id, None)
        self._needs.pop(model_id, None)

    def _host_bytes(self, model_id: str) -> int:
        """While it sleeps; of one that the plan no longer has, what it lies there with."""
        living = self._needs.get(model_id)
        return self._asleep_bytes.get(model_id, living.weights_bytes if living else 0)

    def _placement(self, awake: Ids, asleep: Ids) -> dict[str, tuple[int, ...]] | None:
        """Engines that live stay where they are, awake or not."""
        placed = {name: where for name, where in self._placed.items() if name in awake}
        devices = [self._beside(device, asleep) for device in self._host.devices]
        needs = [self._needs.get(name) or self._planned[name] for name in sorted(awake)]
        return placement(needs, devices, placed)

    def _beside(self, device: Device, asleep: Ids) -> Device:
        num_sleepers = sum(device.index in self._placed.get(name, ()) for name in asleep)
        return replace(device, taken_bytes=device.taken_bytes + num_sleepers * ASLEEP_BYTES)


def _known(entry: Entry) -> Need | None:
    try:
        return need_of(entry)
    except CheckpointError as error:
        logger.warning("%s; it is loaded alone", error.message)
        return None
