"""Is the process alive, are the models ready, and the metrics."""

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenuto.api.services import Services
from tenuto.errors import Unavailable


class HealthRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def liveliness(self, request: Request) -> Response:
        return Response(msgspec.json.encode("I'm alive!"), media_type="application/json")

    async def readiness(self, request: Request) -> Response:
        if not self._services.ready():
            raise Unavailable("Not ready: the server is loading models or shutting down.")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._services.metrics.render(), media_type=CONTENT_TYPE_LATEST)
