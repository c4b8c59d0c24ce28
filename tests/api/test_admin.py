"""What the owner does with the models, through a real uvicorn."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tenuto.access.keys import Keys
from tests.conftest import MODEL, Running, Serve
from tests.models.pools import HeldBackend
from tests.sse import DONE, chat_body, events

KEYS = Keys(user=["sk-user"], admin=["sk-admin"])
ADMIN = {"authorization": "Bearer sk-admin"}


def owned(serve: Serve, **fields: Any) -> Running:
    backend = HeldBackend(can_sleep=True)
    return serve(**{"keys": KEYS, "backend": backend, "eager": (), **fields})


def order(server: Running, action: str, model: str = MODEL) -> httpx.Response:
    return server.client.post(f"/admin/models/{model}/{action}", headers=ADMIN)


def row(server: Running, model: str = MODEL) -> dict[str, Any]:
    rows = server.client.get("/admin/models", headers=ADMIN).json()["data"]
    found: dict[str, Any] = next(row for row in rows if row["id"] == model)
    return found


def becomes(server: Running, state: str, model: str = MODEL) -> dict[str, Any]:
    server.until(lambda: server.services.pool.slots[model].state == state)
    return row(server, model)


def test_load_sleep_wake_and_unload(serve: Serve) -> None:
    server = owned(serve)
    assert row(server)["state"] == "cold"
    response = order(server, "load")
    assert (response.status_code, response.json()["id"]) == (202, MODEL)
    loaded = becomes(server, "ready")
    assert loaded["load_s"] >= 0
    assert (loaded["can_sleep"], loaded["running_requests"]) == (True, 0)
    assert order(server, "sleep").status_code == 202
    becomes(server, "asleep")
    order(server, "load")
    assert becomes(server, "ready")["wake_s"] >= 0
    order(server, "unload")
    assert becomes(server, "cold")["start_phases_s"] == {}


def test_a_running_request_ends_first(serve: Serve) -> None:
    server = owned(serve, eager=(MODEL,))
    engine, pool = server.engine(), server.services.pool
    server.call(engine.go.clear)
    with ThreadPoolExecutor() as aside:
        headers = {"authorization": "Bearer sk-user"}
        body = chat_body(stream=True)
        asking = aside.submit(
            server.client.post, "/v1/chat/completions", json=body, headers=headers
        )
        server.wait(engine.started)
        order(server, "unload")
        server.until(lambda: pool.slots[MODEL].held)
        assert row(server)["state"] == "ready"
        server.call(engine.go.set)
        assert events(asking.result().text)[-1] == DONE
    becomes(server, "cold")


def test_a_model_with_a_slash(serve: Serve) -> None:
    server = owned(serve, models=[{"id": "owner/name", "aliases": ["nick"]}])
    assert order(server, "load", "owner/name").status_code == 202
    becomes(server, "ready", "owner/name")
    assert order(server, "unload", "nick").json()["id"] == "owner/name"
    becomes(server, "cold", "owner/name")


@pytest.mark.parametrize("action", ["load", "sleep", "unload"])
def test_an_unknown_model(serve: Serve, action: str) -> None:
    response = order(owned(serve), action, "nope")
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("keys", "header", "status"),
    [
        (KEYS, None, 401),
        (KEYS, "Bearer sk-wrong", 401),
        (KEYS, "Bearer sk-user", 403),
        # An open server has no owner.
        (Keys(), None, 403),
    ],
)
def test_only_with_an_admin_key(serve: Serve, keys: Keys, header: str | None, status: int) -> None:
    server = owned(serve, keys=keys)
    headers = {"authorization": header} if header else {}
    for method, path in (("GET", "/admin/models"), ("POST", f"/admin/models/{MODEL}/load")):
        response = server.client.request(method, path, headers=headers)
        assert response.status_code == status
        assert response.json()["error"]["code"] == str(status)
    assert server.services.pool.slots[MODEL].state == "cold"
