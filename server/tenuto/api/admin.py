"""What the owner sees of the models, and does with them; with an admin key alone."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tenuto.api.body import json_response
from tenuto.api.services import Services
from tenuto.errors import NotFound, quoted
from tenuto.models.slot import Slot
from tenuto.wire.responses import AdminModel, AdminModelList

ACCEPTED = 202


class AdminRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def models(self, request: Request) -> Response:
        return json_response(AdminModelList(list(map(_row, self._services.pool.slots.values()))))

    async def load(self, request: Request) -> Response:
        """Begins to load or wake it; also one that has failed for good."""
        slot = self._slot(request)
        self._services.pool.want(slot.entry.id)
        return json_response(_row(slot), status=ACCEPTED)

    async def sleep(self, request: Request) -> Response:
        """After its running requests; one that cannot sleep is unloaded."""
        slot = self._slot(request)
        self._services.pool.dismiss(slot.entry.id, "asleep")
        return json_response(_row(slot), status=ACCEPTED)

    async def unload(self, request: Request) -> Response:
        """After its running requests."""
        slot = self._slot(request)
        self._services.pool.dismiss(slot.entry.id, "cold")
        return json_response(_row(slot), status=ACCEPTED)

    def _slot(self, request: Request) -> Slot:
        name = request.path_params["name"]
        target = self._services.registry.find(name)
        slot = self._services.pool.slots.get(target.entry.id) if target else None
        if slot is None:
            raise NotFound(f"The model {quoted(name)!r} is not on this host.", param="model")
        return slot


def _row(slot: Slot) -> AdminModel:
    phases = slot.engine.start_phases if slot.engine else {}
    return AdminModel(
        **common_fields(slot), failed_wakes=slot.failed_wakes, start_phases_s=dict(phases)
    )


def common_fields(slot: Slot) -> dict[str, Any]:
    """Those of `ModelRow`."""
    engine, place = slot.engine, slot.place
    return {
        "id": slot.entry.id,
        "state": slot.state,
        "reason": slot.reason,
        "pinned": slot.entry.pinned,
        "running_requests": slot.leases,
        "waiting_requests": len(slot.queue),
        "can_sleep": engine.can_sleep if engine else None,
        "devices": list(place.devices) if place else [],
        "kv_cache_bytes": (place.kv_bytes if place else None) or slot.entry.gpu_memory,
        "load_s": slot.load_s,
        "wake_s": slot.wake_s,
    }
