"""Stored keys through a real uvicorn: made, used, limited to models, rotated, revoked."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenuto.access.keys import Keys
from tenuto.access.new_key import NewKey
from tenuto.errors import Unavailable
from tests.conftest import MODEL, Running, Serve, Setup, make_adapter, served

ADMIN = "sk-admin"
MODELS: list[dict[str, Any]] = [
    {"id": MODEL, "aliases": ["nick"], "loras": [{"id": "tuned", "source": "./lora"}]},
    {"id": "owner/other"},
]
ROUTES = [
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("GET", "/admin/keys/k-1"),
    ("POST", "/admin/keys/k-1/rotate"),
    ("DELETE", "/admin/keys/k-1"),
]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, state: Path) -> Iterator[Running]:
    """One for all tests: each makes its own keys."""
    directory = tmp_path_factory.mktemp("served")
    make_adapter(directory / "lora")
    keys = Keys(user=["sk-user"], admin=[ADMIN])
    with served(directory, Setup(models=MODELS, keys=keys, state_dir=state, eager=())) as running:
        yield running


def ask(
    server: Running, method: str, path: str, secret: str | None = ADMIN, body: Any = None
) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    return server.client.request(method, path, headers=headers, json=body)


def create(server: Running, **fields: Any) -> dict[str, Any]:
    response = ask(server, "POST", "/admin/keys", body=fields)
    assert response.status_code == 201, response.text
    row: dict[str, Any] = response.json()
    return row


def status(server: Running, secret: str | None) -> int:
    return ask(server, "GET", "/v1/models", secret).status_code


def error(response: httpx.Response) -> tuple[int, str, str]:
    found = response.json()["error"]
    return response.status_code, found["type"], found["param"]


def test_create_and_use(server: Running) -> None:
    row = create(server, note="for Ada", models=[MODEL], requests_per_minute=60, expires_at="30d")
    secret = row.pop("secret")
    assert row["prefix"] == secret[:12]
    assert (row["note"], row["state"], row["role"]) == ("for Ada", "active", "user")
    assert (row["requests_per_minute"], row["tokens_per_minute"]) == (60, None)
    assert status(server, secret) == 200
    assert ask(server, "GET", f"/admin/keys/{row['id']}").json() == row
    listed = ask(server, "GET", "/admin/keys").json()
    assert (listed["object"], listed["data"][-1]) == ("list", row)


def test_rotate(server: Running) -> None:
    old = create(server, note="kept")
    response = ask(server, "POST", f"/admin/keys/{old['id']}/rotate")
    new = response.json()
    assert (response.status_code, new["id"], new["note"]) == (200, old["id"], "kept")
    assert (status(server, old["secret"]), status(server, new["secret"])) == (401, 200)


def test_revoke(server: Running) -> None:
    row = create(server)
    response = ask(server, "DELETE", f"/admin/keys/{row['id']}")
    assert (response.status_code, response.json()["state"]) == (200, "revoked")
    assert "secret" not in response.json()
    assert status(server, row["secret"]) == 401
    assert ask(server, "POST", f"/admin/keys/{row['id']}/rotate").status_code == 400


def tenuto(*arguments: str, state: Path) -> str:
    command = [str(Path(sys.executable).with_name("tenuto")), "keys", *arguments]
    environment = {**os.environ, "TENUTO_STATE_DIR": str(state)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def becomes(server: Running, secret: str, expected: int) -> float:
    """After how many seconds its requests are answered so."""
    began = time.monotonic()
    while status(server, secret) != expected:
        assert time.monotonic() - began < 10
    return time.monotonic() - began


def test_another_process_creates_and_revokes(server: Running, state: Path) -> None:
    secret = tenuto("create", state=state)
    assert becomes(server, secret, 200) < 1
    tenuto("revoke", secret[:12], state=state)
    assert becomes(server, secret, 401) < 1


def test_the_server_stays_closed_after_its_last_key(serve: Serve, tmp_path: Path) -> None:
    server = serve(state_dir=tmp_path / "state", eager=())
    assert status(server, None) == 200
    watcher = server.services.key_watcher
    assert watcher
    first, secret = watcher.store.create(NewKey(role="admin"))
    server.call(watcher.refresh)
    assert (status(server, None), status(server, secret)) == (401, 200)
    # It revokes itself, as an admin key like those of the start.
    assert ask(server, "DELETE", f"/admin/keys/{first.key.id}", secret).status_code == 200
    assert (status(server, None), status(server, secret)) == (401, 401)


def test_stored_keys_are_in_force_before_the_first_request(serve: Serve, tmp_path: Path) -> None:
    secret = tenuto("create", state=tmp_path / "state")
    server = serve(state_dir=tmp_path / "state", eager=())
    assert (status(server, None), status(server, secret)) == (401, 200)


def test_a_new_secret_is_answered_whatever_comes_after(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody could read it again."""
    server = serve(keys=Keys(admin=[ADMIN]), state_dir=tmp_path / "state", eager=())
    watcher = server.services.key_watcher
    assert watcher
    known = create(server)["id"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(watcher, "look", unreadable)
        row = create(server)
        rotated = ask(server, "POST", f"/admin/keys/{known}/rotate")
        # It is not in force, and may be asked for again.
        assert ask(server, "DELETE", f"/admin/keys/{known}").status_code == 503
    assert caplog.text.count("a key has changed, and is not in force yet: Unavailable") == 2
    becomes(server, row["secret"], 200)
    assert rotated.status_code == 200
    becomes(server, rotated.json()["secret"], 401)


def unreadable() -> None:
    raise Unavailable("The state database cannot be used.")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_with_an_admin_key(server: Running, method: str, path: str) -> None:
    secret = create(server)["secret"]
    for given, expected in ((None, 401), ("sk-user", 403), (secret, 403)):
        assert ask(server, method, path, given, body={}).status_code == expected


def test_an_admin_key_opens_the_other_admin_routes(server: Running) -> None:
    secret = create(server, role="admin")["secret"]
    assert ask(server, "GET", "/admin/models", secret).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"models": []}, "models"),
        ({"models": [1]}, "models"),
        ({"expires_at": "2020-01-01"}, "expires_at"),
        ({"colour": "red"}, "colour"),
        ({"first_priority": 3}, "last_priority"),
    ],
)
def test_wishes_that_are_refused(server: Running, body: dict[str, Any], param: str) -> None:
    response = ask(server, "POST", "/admin/keys", body={"note": "refused", **body})
    assert error(response) == (400, "BadRequestError", param)
    assert "refused" not in ask(server, "GET", "/admin/keys").text


@pytest.mark.parametrize(("method", "path"), ROUTES[2:])
def test_keys_that_are_not_there(server: Running, method: str, path: str) -> None:
    assert error(ask(server, method, path)) == (404, "invalid_request_error", "key")


def test_a_server_without_a_database(serve: Serve) -> None:
    server = serve(keys=Keys(admin=[ADMIN]), eager=())
    for method, path in ROUTES:
        response = ask(server, method, path, body={})
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "This server stores no keys."


def test_secrets_are_in_no_log_and_no_listing(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        row = create(server)
        rotated = ask(server, "POST", f"/admin/keys/{row['id']}/rotate").json()
        listed = ask(server, "GET", "/admin/keys").text
        ask(server, "GET", f"/admin/keys/{rotated['secret']}")
        ask(server, "DELETE", f"/admin/keys/{row['id']}")
    # The client of this test logs the path that it asks for.
    log = [record.getMessage() for record in caplog.records if record.name.startswith("tenuto.")]
    for secret in (row["secret"], rotated["secret"]):
        assert secret[12:] not in "".join(log) + listed
    for action in ("created", "rotated", "revoked"):
        assert any(line.startswith(f"key {row['id']} {action} by fixed-") for line in log)


def models(server: Running, secret: str) -> list[str]:
    return [card["id"] for card in ask(server, "GET", "/v1/models", secret).json()["data"]]


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["owner/*"], ["owner/other"]),
        ([MODEL], [MODEL, "tuned"]),
        (["tuned"], ["tuned"]),
        (["*"], [MODEL, "tuned", "owner/other"]),
        (["nope"], []),
    ],
)
def test_only_allowed_models_are_listed(
    server: Running, globs: list[str], expected: list[str]
) -> None:
    secret = create(server, models=globs)["secret"]
    assert models(server, secret) == expected
    info = ask(server, "GET", "/v1/model/info", secret).json()["data"]
    assert [row["model_name"] for row in info] == [name for name in expected if name != "tuned"]
    for name in (MODEL, "tuned", "owner/other"):
        response = ask(server, "GET", f"/v1/models/{name}", secret)
        assert response.status_code == (200 if name in expected else 404)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1]},
    "/utils/token_counter": {"prompt": "Hi"},
}


@pytest.mark.parametrize("name", [MODEL, "nick", "tuned", "nope"])
@pytest.mark.parametrize("path", BODIES)
def test_models_that_are_not_allowed(server: Running, path: str, name: str) -> None:
    secret = create(server, models=["owner/*"])["secret"]
    response = ask(server, "POST", path, secret, body={"model": name, **BODIES[path]})
    assert error(response) == (401, "key_model_access_denied", "model")
    assert response.json()["error"]["message"] == (
        "key not allowed to access model. This key can only access models=['owner/*']. "
        f"Tried to access {name}"
    )


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/embeddings"])
def test_models_that_are_allowed(server: Running, path: str) -> None:
    secret = create(server, models=["owner/*"])["secret"]
    for name, expected in (("owner/other", 200), ("owner/nope", 400)):
        body = {"model": name, **BODIES[path]}
        assert ask(server, "POST", path, secret, body).status_code == expected
