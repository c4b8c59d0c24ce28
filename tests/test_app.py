"""The routes and their aliases, the envelope for what is no route, CORS, and the documentation."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tenuto.wire.bounds import Bounds
from tests.conftest import Running, Serve, Setup, served

MODELS = [{"id": "demo"}, {"id": "owner/second"}, {"id": "chat"}]
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    setup = Setup(models=MODELS, eager=("demo", "owner/second", "chat"))
    with served(tmp_path_factory.mktemp("several"), setup) as running:
        running.engine("chat")
        yield running


def generate(server: Running, path: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "prompt": "Hi", "max_tokens": 1, **fields}
    return server.client.post(path, json=body)


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("model", ["demo", "owner/second"])
@pytest.mark.parametrize(
    ("route", "kind"), [("chat/completions", "chat.completion"), ("completions", "text_completion")]
)
def test_routes_with_and_without_v1(
    several: Running, prefix: str, model: str, route: str, kind: str
) -> None:
    body = generate(several, f"{prefix}/{route}", model=model).json()
    assert (body["object"], body["model"]) == (kind, model)


@pytest.mark.parametrize("prefix", ["/engines", "/openai/deployments", "/v1"])
@pytest.mark.parametrize("model", ["demo", "owner/second", "owner%2Fsecond"])
@pytest.mark.parametrize("fields", [{"model": "chat"}, {"model": "nope"}, {}])
@pytest.mark.parametrize(
    ("route", "kind"), [("chat/completions", "chat.completion"), ("completions", "text_completion")]
)
def test_the_model_in_the_path_wins(
    several: Running, prefix: str, model: str, fields: Any, route: str, kind: str
) -> None:
    body = generate(several, f"{prefix}/{model}/{route}", **fields).json()
    assert (body["object"], body["model"]) == (kind, model.replace("%2F", "/"))


def test_fixed_routes_come_first(several: Running) -> None:
    """Also where a model is named as a part of one."""
    body = generate(several, "/v1/chat/completions", model="demo").json()
    assert (body["object"], body["model"]) == ("chat.completion", "demo")
    body = generate(several, "/engines/chat/completions").json()
    assert (body["object"], body["model"]) == ("text_completion", "chat")


@pytest.mark.parametrize("prefix", ["/engines", "/openai/deployments", "/v1"])
def test_unknown_model_in_the_path(several: Running, prefix: str) -> None:
    response = generate(several, f"{prefix}/nope/completions", model="demo")
    assert response.status_code == 400
    assert "model=nope" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("GET", "/static/docs/nope.js"),
        ("GET", "/redoc"),
    ],
)
def test_no_such_route(server: Running, method: str, path: str) -> None:
    response = server.client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "404")
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert error["message"] == f"{method} {path}: no such route. See /docs."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/health", "GET"),
        ("PUT", "/tokenize", "POST"),
    ],
)
def test_method_not_allowed(server: Running, method: str, path: str, allowed: str) -> None:
    response = server.client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (405, "invalid_request_error")
    assert response.headers["allow"] == allowed
    assert f"use {allowed}" in error["message"]


def test_long_paths_are_cut(server: Running) -> None:
    message = server.client.get("/" + "x" * 1000).json()["error"]["message"]
    assert len(message) < 120


def preflight(server: Running, origin: str) -> Any:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    return server.client.options("/v1/chat/completions", headers=asked)


def test_no_cors_by_default(server: Running) -> None:
    assert "access-control-allow-origin" not in preflight(server, ORIGIN).headers
    response = server.client.get("/v1/models", headers={"origin": ORIGIN})
    assert "access-control-allow-origin" not in response.headers


def test_cors_for_a_chosen_origin(serve: Serve) -> None:
    server = serve(cors_origins=[ORIGIN])
    allowed = preflight(server, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["access-control-allow-credentials"] == "true"
    assert "access-control-allow-origin" not in preflight(server, "https://other.example").headers
    refused = server.client.get("/nowhere", headers={"origin": ORIGIN})
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


def test_cors_for_everyone_is_without_credentials(serve: Serve) -> None:
    server = serve(cors_origins=["*"])
    response = server.client.get("/health", headers={"origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


def test_documentation_page_loads_nothing_from_elsewhere(server: Running) -> None:
    page = server.client.get("/docs").text
    assert not re.search(r"(https?:)?//", page.replace("window.location", ""))
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 3
    for path in loaded:
        assert server.client.get(path).status_code == 200


def test_openapi_names_every_route_and_request(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    paths = {"/v1/chat/completions", "/completions", "/v1/embeddings", "/utils/token_counter"}
    assert paths <= set(document["paths"])
    chat = document["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ChatRequest"}
    assert "default" in chat["responses"]
    assert references(document) <= set(document["components"]["schemas"])


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    found = set().union(*map(references, value.values()))
    return found | {value["$ref"].rpartition("/")[2]} if "$ref" in value else found


def test_openapi_shows_this_servers_bounds(serve: Serve) -> None:
    server = serve(bounds=Bounds(n=3))
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest"):
        properties = schemas[name]["properties"]
        assert properties["n"]["anyOf"][0]["maximum"] == 3
        assert properties["top_p"]["anyOf"][0]["exclusiveMinimum"] == 0
        assert properties["top_p"]["anyOf"][0]["maximum"] == 1
