"""The outermost layer: keys, request ids, drain, headers, and what nobody caught."""

import re
import signal
from collections.abc import Iterator

import httpx
import pytest

from tenuto.access.keys import Keys
from tenuto.engine.fake import FakeBackend
from tenuto.wire.bounds import Bounds
from tests.conftest import MODEL, Running, Serve, Setup, served
from tests.engines import StepwiseBackend
from tests.sse import DONE, chat_body, events

KEYS = Keys(user=["sk-user"], admin=["sk-admin"])
SECRET = "my-secret-prompt"
FAILED = "Authentication Error, "
CLOSED = [
    ("GET", "/v1/models"),
    ("GET", "/models"),
    ("GET", f"/v1/models/{MODEL}"),
    ("GET", "/v1/model/info"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/completions"),
    ("POST", f"/engines/{MODEL}/completions"),
    ("POST", "/utils/token_counter"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/nowhere"),
    ("GET", "/health/"),
    ("GET", "/docs/x"),
]
OPEN = ["/health", "/health/liveliness", "/health/readiness", "/openapi.json", "/docs"]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(tmp_path_factory.mktemp("locked"), Setup(keys=KEYS)) as running:
        running.engine()
        yield running


@pytest.mark.parametrize(
    ("header", "kind", "param", "message"),
    [
        (None, "auth_error", "None", "No api key passed in."),
        (
            "sk-user",
            "auth_error",
            "None",
            "Malformed API Key passed in. Ensure Key has `Bearer ` prefix.",
        ),
        ("Bearer sk-wrong", "token_not_found_in_db", "key", "Invalid API key passed in."),
    ],
)
def test_refused_keys(
    locked: Running, header: str | None, kind: str, param: str, message: str
) -> None:
    headers = {} if header is None else {"authorization": header}
    response = locked.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
    assert response.status_code == 401
    assert response.json()["error"] == {
        "message": FAILED + message,
        "type": kind,
        "param": param,
        "code": "401",
    }
    assert "sk-" not in response.text


@pytest.mark.parametrize("secret", ["sk-user", "sk-admin"])
def test_accepted_keys(locked: Running, secret: str) -> None:
    headers = {"authorization": f"Bearer {secret}"}
    response = locked.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_needs_a_key(locked: Running, method: str, path: str) -> None:
    assert locked.client.request(method, path).status_code == 401


@pytest.mark.parametrize("path", [*OPEN, "/static/docs/swagger-ui.css", "/metrics"])
def test_what_needs_no_key(locked: Running, path: str) -> None:
    assert locked.client.get(path).status_code == 200


def test_metrics_need_a_key_from_elsewhere(locked: Running) -> None:
    """uvicorn believes a proxy on this host about the client's address."""
    elsewhere = {"x-forwarded-for": "192.0.2.1"}
    assert locked.client.get("/metrics", headers=elsewhere).status_code == 401
    allowed = {**elsewhere, "authorization": "Bearer sk-user"}
    assert locked.client.get("/metrics", headers=allowed).status_code == 200


@pytest.mark.parametrize("believed", ["127.0.0.1", "*"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1"), ("X-Real-IP", "::1")],
)
def test_what_was_forwarded_is_not_near(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, believed: str, name: str, value: str
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", believed)
    server = serve(keys=KEYS)
    forwarded = {name: value}
    assert server.client.get("/metrics", headers=forwarded).status_code == 401
    assert server.client.get("/metrics").status_code == 200
    admin = {"authorization": "Bearer sk-admin"}
    assert server.client.get("/admin/models", headers=admin | forwarded).status_code == 403
    assert server.client.get("/admin/models", headers=admin).status_code == 200


@pytest.mark.parametrize("given", ["abc", "A-1_2.3", "x" * 128])
def test_the_clients_request_id_is_taken_over(server: Running, given: str) -> None:
    response = server.client.get("/health", headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", 'a"b', "a;b"])
def test_a_request_id_is_made(server: Running, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given}
    first, second = (server.client.get("/health", headers=headers) for _ in range(2))
    ids = [response.headers["x-request-id"] for response in (first, second)]
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/docs", "/static/docs/swagger-ui.css"])
def test_every_answer_has_a_request_id(locked: Running, path: str) -> None:
    assert locked.client.get(path).headers["x-request-id"]


def test_headers_are_bounded(serve: Serve) -> None:
    server = serve(bounds=Bounds(header_bytes=2048))
    assert server.client.get("/v1/models", headers={"x-a": "a" * 1000}).status_code == 200
    for path in ("/v1/models", "/health"):
        response = server.client.get(path, headers={"x-a": "a" * 2048})
        assert response.status_code == 431
        assert response.json()["error"]["message"] == (
            "The request's headers must be at most 2048 bytes."
        )


def test_default_header_size(server: Running) -> None:
    assert server.client.get("/health", headers={"x-a": "a" * (31 << 10)}).status_code == 200
    assert server.client.get("/health", headers={"x-a": "a" * (33 << 10)}).status_code == 431


def test_draining_lets_nobody_in(own: Running) -> None:
    own.engine()
    own.services.gate.draining = True
    for response in (own.chat(), own.client.get("/v1/models")):
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (503, "ServiceUnavailableError")
        assert response.headers["retry-after"] == "5"
    assert own.client.get("/health").status_code == 200
    assert own.client.get("/health/readiness").status_code == 503


def test_a_running_stream_outlives_the_signal(serve: Serve) -> None:
    server = serve(backend=StepwiseBackend())
    engine = server.engine()
    with server.client.stream("POST", "/v1/completions", json=completion(stream=True)) as response:
        parts = response.iter_text()
        text = next(parts)
        server.call(lambda: server.process.handle_exit(signal.SIGTERM, None))
        refused = httpx.post(f"{server.url}/v1/completions", json=completion())
        assert refused.status_code == 503
        server.call(engine.go.set)
        text += "".join(parts)
    assert events(text)[-1] == DONE


def test_a_stream_that_outlasts_the_drain_ends_with_an_error(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(backend=StepwiseBackend(), drain_s=0.01)
    server.engine()
    with server.client.stream("POST", "/v1/completions", json=completion(stream=True)) as response:
        parts = response.iter_text()
        text = next(parts)
        server.call(lambda: server.process.handle_exit(signal.SIGTERM, None))
        text += "".join(parts)
    assert events(text)[-1]["error"]["code"] == "503"
    assert "requests still ran after 0.01 s" in caplog.text


def test_two_signals_in_one_breath_are_one(serve: Serve) -> None:
    server = serve(backend=StepwiseBackend())
    engine = server.engine()
    with server.client.stream("POST", "/v1/completions", json=completion(stream=True)) as response:
        parts = response.iter_text()
        next(parts)
        for _ in range(2):
            server.call(lambda: server.process.handle_exit(signal.SIGTERM, None))
        assert not server.process.force_exit
        server.call(engine.go.set)
        assert DONE in "".join(parts)


def completion(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": "Hi", **fields}


def test_our_own_fault(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def broken(prompt: object, sampling: object, index: int) -> str:
        raise ZeroDivisionError(SECRET)

    server = serve(backend=FakeBackend(reply=broken))
    response = server.chat()
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "Internal server error. The server's log has more under this request's id.",
        "type": "internal_server_error",
        "param": None,
        "code": "500",
    }
    assert f"request {response.headers['x-request-id']}: ZeroDivisionError" in caplog.text
    assert SECRET not in response.text + caplog.text
    server.left()


def test_probes_are_not_logged(own: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    own.client.get("/health")
    own.client.get("/v1/models", headers={"x-request-id": "seen"})
    own.left()
    lines = [r.getMessage() for r in caplog.records if r.name == "tenuto.api.edge"]
    assert len(lines) == 1
    assert re.fullmatch(r"seen GET /v1/models 200 \d+\.\d{3} s ", lines[0])


def test_nothing_of_the_request_is_logged(own: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="tenuto")
    own.chat("my-secret-prompt", stop=["my-secret-stop"], max_tokens=5)
    own.chat("my-secret-prompt", stop=[""], n=99)
    own.client.get("/v1/models?key=my-secret-key")
    own.left()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("tenuto")]
    assert ours
    assert "my-secret" not in "".join(ours)
