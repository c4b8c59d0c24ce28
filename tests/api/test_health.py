"""Is the process alive, are the models ready."""

import asyncio
from dataclasses import dataclass, field

from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.engine.types import EngineSpec
from tests.conftest import MODEL, Running, Serve


@dataclass
class HeldBackend(FakeBackend):
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def engine(self, spec: EngineSpec) -> FakeEngine:
        await self.told.wait()
        return await super().engine(spec)


def test_alive(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    response = server.client.get("/health/liveliness")
    assert response.json() == "I'm alive!"
    assert response.headers["content-type"] == "application/json"


def test_ready_when_the_eager_models_are(serve: Serve) -> None:
    backend = HeldBackend()
    server = serve(backend=backend, models=[{"id": MODEL}, {"id": "cold"}])
    response = server.client.get("/health/readiness")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "ServiceUnavailableError"
    assert server.client.get("/health").status_code == 200
    assert "is being loaded" in server.chat().json()["error"]["message"]
    server.call(backend.told.set)
    server.engine()
    assert server.client.get("/health/readiness").json() == {"status": "ready"}


def test_not_ready_after_a_loss(own: Running) -> None:
    own.call(own.engine().lose)
    while own.services.pool.slots[MODEL].state == "ready":
        own.call(lambda: None)
    assert own.client.get("/health/readiness").status_code == 503
    assert own.client.get("/health").status_code == 200


def test_metrics(server: Running) -> None:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "tenuto_requests_total" in response.text
