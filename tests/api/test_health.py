"""Is the process alive, are the models ready."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tenuto.models.pool import Terms
from tests.conftest import MODEL, Running, Serve
from tests.models.pools import HeldBackend, Limited, only


def test_alive(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    response = server.client.get("/health/liveliness")
    assert response.json() == "I'm alive!"
    assert response.headers["content-type"] == "application/json"


def test_ready_when_the_eager_models_are(serve: Serve) -> None:
    backend = HeldBackend()
    backend.told.clear()
    server = serve(backend=backend, models=[{"id": MODEL}, {"id": "cold"}])
    response = server.client.get("/health/readiness")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "ServiceUnavailableError"
    assert server.client.get("/health").status_code == 200
    with ThreadPoolExecutor(1) as aside:
        asking = aside.submit(server.chat)
        server.call(backend.told.set)
        assert asking.result().status_code == 200
    assert server.client.get("/health/readiness").json() == {"status": "ready"}


def test_ready_while_another_model_has_the_place(serve: Serve) -> None:
    server = serve(models=[{"id": MODEL}, {"id": "cold"}], terms=Terms(Limited(only(1))))
    assert server.chat().status_code == 200
    assert server.chat(model="cold").status_code == 200
    assert server.services.pool.slots[MODEL].state == "cold"
    assert server.client.get("/health/readiness").status_code == 200


@pytest.mark.usefixtures("no_restarts")
def test_not_ready_after_a_loss(own: Running) -> None:
    lose(own)
    assert own.client.get("/health/readiness").status_code == 503
    assert own.client.get("/health").status_code == 200


@pytest.mark.usefixtures("quick_restarts")
def test_ready_again_after_a_loss(own: Running) -> None:
    lose(own)
    assert own.chat().status_code == 200
    assert own.client.get("/health/readiness").status_code == 200


def lose(server: Running) -> None:
    """Returns when the server has noticed."""
    assert server.chat().status_code == 200
    engine = server.engine()
    server.call(engine.lose)
    while server.services.pool.slots[MODEL].engine is engine:
        server.call(lambda: None)


def test_metrics(server: Running) -> None:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "tenuto_requests_total" in response.text
