"""Request bodies: their size, their JSON, and the fields that nothing acts upon."""

from typing import Any

import pytest

from tenuto.wire.bounds import Bounds
from tests.conftest import MODEL, Running, Serve
from tests.sse import chat_body, connected, read_until, request_bytes

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat_body(),
    "/v1/completions": {"model": MODEL, "prompt": "Hi"},
    "/utils/token_counter": {"model": MODEL, "prompt": "Hi"},
    "/tokenize": {"model": MODEL, "prompt": "Hi"},
    "/detokenize": {"model": MODEL, "tokens": [72]},
}
IGNORED = "x-tenuto-ignored-params"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("content", [b"", b'{"model": ', b"\xff", b"[]"])
def test_broken_bodies(server: Running, path: str, content: bytes) -> None:
    response = server.client.post(path, content=content)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == "request_body"
    assert error["message"].startswith("Invalid JSON payload: ")


@pytest.mark.parametrize("path", ROUTES)
def test_body_size(serve: Serve, path: str) -> None:
    server = serve(bounds=Bounds(body_bytes=200))
    content = request_bytes(path, ROUTES[path]).split(b"\r\n\r\n")[1]
    assert server.client.post(path, content=content.ljust(200)).status_code == 200
    response = server.client.post(path, content=content.ljust(201))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (413, "request_body")
    assert error["message"] == "The request body must be at most 200 bytes."


def test_body_size_without_a_length(serve: Serve) -> None:
    server = serve(bounds=Bounds(body_bytes=200))
    parts = (b" " * 150 for _ in range(2))
    assert server.client.post("/v1/completions", content=parts).status_code == 413


def test_default_body_size(server: Running) -> None:
    assert server.services.bounds.body_bytes == 8 << 20


@pytest.mark.parametrize("path", ROUTES)
def test_ignored_fields_are_named(server: Running, path: str) -> None:
    sent = {**ROUTES[path], "top_a": 1, "mirostat": 0, "tfs": None}
    response = server.client.post(path, json=sent)
    assert response.status_code == 200
    assert response.headers[IGNORED] == "mirostat,top_a"
    assert IGNORED not in server.client.post(path, json=ROUTES[path]).headers


def test_ignored_fields_of_a_stream_are_named(server: Running) -> None:
    assert server.chat(stream=True, top_a=1).headers[IGNORED] == "top_a"
    assert server.chat(stream=True, best_of=2, top_a=1).headers[IGNORED] == "top_a"


@pytest.mark.parametrize("path", ROUTES)
def test_strict_header(server: Running, path: str) -> None:
    for value, status in (("true", 400), ("1", 400), ("false", 200)):
        headers = {"x-tenuto-strict-params": value}
        response = server.client.post(path, json={**ROUTES[path], "top_a": 1}, headers=headers)
        assert response.status_code == status
        if status == 400:
            error = response.json()["error"]
            assert (error["type"], error["param"]) == ("BadRequestError", "top_a")
        known = server.client.post(path, json={**ROUTES[path], "top_a": None}, headers=headers)
        assert known.status_code == 200


def test_strict_setting(serve: Serve) -> None:
    server = serve(strict_params=True)
    assert server.chat(top_a=1).status_code == 400
    assert server.chat(user="me", metadata={}).status_code == 200


def test_field_names_cannot_break_the_header(server: Running) -> None:
    response = server.chat("Hi", **{"a\r\nset-cookie: x": 1, "b,c": 1, "é" * 100: 1})
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert response.headers[IGNORED] == f"a??set-cookie??x,b?c,{'?' * 64}"


def test_many_fields_are_named_within_4_kib(server: Running) -> None:
    sent = {f"field{i:04}": 1 for i in range(1000)}
    names = server.chat("Hi", **sent).headers[IGNORED]
    assert 4000 < len(names) <= 4096
    assert set(names.split(",")) < sent.keys()


def test_a_client_that_leaves_while_it_sends(
    own: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(own.url) as client:
        client.sendall(request_bytes("/v1/completions", ROUTES["/v1/completions"], cut=5))
        with connected(own.url) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n")
            read_until(second, b"200 OK")
    own.left()
    text = own.services.metrics.render().decode()
    assert 'status="499"' in text
    assert 'status="500"' not in text
    assert "ClientDisconnect" not in caplog.text
