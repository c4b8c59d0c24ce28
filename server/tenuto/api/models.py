"""Which models there are: the hosted API's list, and the facts behind it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tenuto.api.body import json_response
from tenuto.api.exchange import exchange_of
from tenuto.api.services import Services, may_use
from tenuto.errors import NotFound, quoted
from tenuto.models.registry import Entry, Target
from tenuto.wire.responses import ModelCard, ModelInfo, ModelInfoList, ModelList


class ModelRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def models(self, request: Request) -> Response:
        key = exchange_of(request).key
        targets = self._services.registry.targets()
        usable = (target for target in targets if target.is_present and may_use(key, target))
        return json_response(ModelList([ModelCard(target.id) for target in usable]))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        target = self._services.registry.find(name)
        key = exchange_of(request).key
        if target is None or not target.is_present or not may_use(key, target):
            raise NotFound(f"The model {quoted(name)!r} does not exist.", param="model")
        return json_response(ModelCard(name))

    async def model_info(self, request: Request) -> Response:
        key = exchange_of(request).key
        usable = (e for e in self._services.registry.present() if may_use(key, Target(e)))
        return json_response(ModelInfoList([await self._info(entry) for entry in usable]))

    async def _info(self, entry: Entry) -> ModelInfo:
        slot = self._services.pool.slots[entry.id]
        facts = slot.facts()
        info: dict[str, Any] = {
            "max_model_len": facts.max_model_len if facts else entry.max_model_len,
            "quantization": facts.quantization if facts else entry.quantization,
            "state": slot.state,
            "reason": slot.reason,
            "license": entry.license,
            "sampling_defaults": entry.request_defaults,
            "task": entry.task,
            "loras": list(entry.adapters),
        }
        return ModelInfo(entry.id, {}, info)
