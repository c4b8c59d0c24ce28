"""What a key may use, through a real uvicorn; and whoever sends slowly or guesses."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tenuto.access.guessing import FREE_FAILURES, Guesses
from tenuto.access.keys import Key, Keys, Limits, digest_of
from tenuto.engine.fake import FakeBackend
from tenuto.wire.bounds import Bounds
from tests.conftest import MODEL, Running, Serve
from tests.models.pools import HeldBackend
from tests.sse import chat_body, connected, read_until, request_bytes

SECRET = "sk-limited"
BEARER = {"authorization": f"Bearer {SECRET}"}


def limited(serve: Serve, backend: FakeBackend | None = None, **limits: int) -> Running:
    keys = Keys()
    key = Key(id="k-1", digest=digest_of(SECRET), limits=Limits(**limits))
    keys.adopt([key], has_stored=True)
    server = serve(keys=keys, backend=backend or FakeBackend())
    server.client.headers.update(BEARER)
    return server


def test_a_limited_key_is_told_what_is_left(serve: Serve) -> None:
    server = limited(serve, requests_per_minute=2, tokens_per_minute=1000)
    first = server.chat()
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    prompt_tokens = first.json()["usage"]["prompt_tokens"]
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 1000 - prompt_tokens
    assert server.chat(stream=True).headers["x-ratelimit-remaining-requests"] == "0"
    refused = server.chat()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "429", "rate_limit_error")
    assert error["param"] is None
    assert 0 < int(refused.headers["retry-after"]) <= 60
    # What costs nothing is not limited.
    assert server.client.get("/v1/models").status_code == 200
    counted = {"model": MODEL, "prompt": "Hi"}
    assert server.client.post("/utils/token_counter", json=counted).status_code == 200


def test_a_prompt_that_can_never_fit_reaches_no_engine(serve: Serve) -> None:
    server = limited(serve, tokens_per_minute=20)
    refused = server.chat("x" * 100)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert server.engine().generated == []
    assert server.chat(max_tokens=1).status_code == 200


def test_all_candidates_count(serve: Serve) -> None:
    server = limited(serve, tokens_per_minute=10_000)
    before = int(server.chat(max_tokens=1).headers["x-ratelimit-remaining-tokens"])
    answer = server.chat(best_of=4, n=1, max_tokens=10)
    usage = answer.json()["usage"]
    after = int(server.chat(max_tokens=1).headers["x-ratelimit-remaining-tokens"])
    prompts = 2 * usage["prompt_tokens"]
    assert before - after == 1 + prompts + 4 * 10
    assert usage["completion_tokens"] == 10


def fails(running: Running) -> httpx.Response:
    return running.chat(temperature=99)


def finishes(running: Running) -> httpx.Response:
    return running.chat()


def streams(running: Running) -> httpx.Response:
    return running.chat(stream=True)


@pytest.mark.parametrize("ends", [finishes, streams, fails])
def test_a_request_that_ends_gives_its_place_back(
    serve: Serve, ends: Callable[[Running], httpx.Response]
) -> None:
    server = limited(serve, parallel_requests=1)
    for _ in range(3):
        assert ends(server).status_code != 429
    server.left()


@pytest.mark.usefixtures("no_restarts")
def test_a_request_whose_engine_is_lost_gives_its_place_back(serve: Serve) -> None:
    server = limited(serve, parallel_requests=1)
    engine = server.engine()
    server.call(engine.go.clear)
    with ThreadPoolExecutor() as aside:
        asking = aside.submit(server.chat)
        server.wait(engine.started)
        assert server.chat().status_code == 429
        server.call(engine.lose)
        server.until(lambda: server.services.pool.slots[MODEL].state == "failed")
        server.call(lambda: server.services.pool.slots[MODEL].give_up("gone"))
        assert asking.result().status_code == 503
    assert server.chat().status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_its_place_back(serve: Serve, stream: bool) -> None:
    server = limited(serve, parallel_requests=1)
    engine = server.engine()
    server.call(engine.go.clear)
    body = request_bytes("/v1/chat/completions", chat_body(stream=stream))
    with connected(server.url) as client:
        client.sendall(body.replace(b"\r\n", f"\r\nauthorization: Bearer {SECRET}\r\n".encode(), 1))
        server.wait(engine.started)
        assert server.chat().status_code == 429
    server.until(lambda: server.services.gate._inside == 0)
    server.call(engine.go.set)
    assert server.chat().status_code == 200


class BrokenBackend(FakeBackend):
    async def prompts(self, spec: Any) -> Any:
        raise ZeroDivisionError


def test_a_fault_of_the_server_gives_the_place_back(serve: Serve) -> None:
    server = limited(serve, BrokenBackend(), parallel_requests=1)
    for _ in range(2):
        assert server.chat().status_code == 500


def test_a_key_bounds_the_priority(serve: Serve) -> None:
    keys = Keys(["sk-plain"])
    key = Key(id="k-1", digest=digest_of(SECRET), first_priority=-2, last_priority=3)
    keys.adopt([key], has_stored=True)
    server = serve(keys=keys)
    server.client.headers.update(BEARER)
    for priority in (None, -9, 2, 7):
        fields: dict[str, Any] = {} if priority is None else {"priority": priority}
        assert server.chat(**fields).status_code == 200
    assert [sampling.priority for sampling in server.engine().generated] == [0, -2, 2, 3]
    server.client.headers["authorization"] = "Bearer sk-plain"
    refused = server.chat(priority=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")


@pytest.mark.parametrize(("shared", "salts"), [(True, [None, "s"]), (False, ["k-1:", "k-1:s"])])
def test_keys_that_do_not_share_the_prefix_cache(
    serve: Serve, shared: bool, salts: list[str | None]
) -> None:
    keys = Keys()
    keys.adopt([Key(id="k-1", digest=digest_of(SECRET))], has_stored=True)
    server = serve(keys=keys, services={"share_prefix_cache": shared})
    server.client.headers.update(BEARER)
    for fields in ({}, {"cache_salt": "s"}):
        assert server.chat(**fields).status_code == 200
    assert [sampling.cache_salt for sampling in server.engine().generated] == salts


def test_one_keys_queue_does_not_starve_another(serve: Serve) -> None:
    """Of one key twenty requests wait; another key's only one goes before all but one of them."""
    keys = Keys(["sk-many", "sk-one"])
    server = serve(keys=keys, backend=HeldBackend(capacity=1, is_held=True))
    queue = server.services.pool.slots[MODEL].queue

    def ask(secret: str, seed: int) -> httpx.Response:
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1, "seed": seed}
        headers = {"authorization": f"Bearer {secret}"}
        return server.client.post("/v1/completions", json=body, headers=headers)

    with ThreadPoolExecutor(21) as clients:
        asking = [clients.submit(ask, "sk-many", 1) for _ in range(20)]
        server.until(lambda: len(queue) == 19)
        asking.append(clients.submit(ask, "sk-one", 2))
        server.until(lambda: len(queue) == 20)
        server.call(server.engine().go.set)
        assert {task.result().status_code for task in asking} == {200}
    order = [sampling.seed for sampling in server.engine().generated]
    assert order.index(2) <= 2


def test_who_guesses_keys_is_slowed(serve: Serve) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    server = serve(keys=Keys([SECRET]), services={"guesses": Guesses(sleep)})
    for number in range(FREE_FAILURES + 2):
        headers = {"authorization": f"Bearer sk-{number}"}
        assert server.client.get("/v1/models", headers=headers).status_code == 401
    assert slept == [0.1, 0.2]
    assert server.client.get("/v1/models", headers=BEARER).status_code == 200
    assert len(slept) == 2


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n", b"GET /health HTTP/1.1\r\nx"],
)
def test_headers_that_do_not_arrive(serve: Serve, sent: bytes) -> None:
    server = serve(services={"request_timeout_s": 0.2})
    with connected(server.url) as client:
        client.sendall(sent)
        assert client.recv(1) == b""


def test_headers_of_a_second_request_that_do_not_arrive(serve: Serve) -> None:
    server = serve(services={"request_timeout_s": 0.2})
    with connected(server.url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        read_until(client, b"}")
        client.sendall(b"GET /health HTTP/1.1\r\n")
        assert client.recv(1) == b""


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(1 << 16) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("sent", "status", "dripped"),
    [
        (b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n", 401, b"x"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", 200, b"\r\n"),
    ],
)
def test_what_drips_after_an_answer(serve: Serve, sent: bytes, status: int, dripped: bytes) -> None:
    server = serve(keys=Keys([SECRET]), services={"request_timeout_s": 0.3})
    with connected(server.url) as client:
        client.sendall(sent)
        assert read_until(client, b"}").startswith(f"HTTP/1.1 {status}".encode())
        client.settimeout(0.02)
        began = time.monotonic()
        while time.monotonic() - began < 4:
            try:
                client.sendall(dripped)
                if ended(client):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        # uvicorn's own timer, of 5 s, has no part in this.
        assert time.monotonic() - began < 4


def test_a_connection_is_kept_for_the_next_request(serve: Serve) -> None:
    server = serve(keys=Keys([SECRET]), services={"request_timeout_s": 5})
    with connected(server.url) as client:
        client.sendall(request_bytes("/v1/chat/completions", chat_body(), cut=1))
        assert read_until(client, b"}}").startswith(b"HTTP/1.1 401")
        client.sendall(b"}GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_until(client, b"}").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("endless", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n"])
@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_headers_without_an_end(serve: Serve, before: bytes, endless: bytes) -> None:
    server = serve(bounds=Bounds(header_bytes=1024))
    with connected(server.url) as client:
        if before:
            client.sendall(before)
            read_until(client, b"}")
        piece = b"x: y\r\n" if endless.endswith(b"\n") else b"x" * 6
        client.sendall(endless + piece * 12_000)
        answer = read_until(client, b"}}")
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"\r\nconnection: close\r\n" in answer
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert (error["code"], error["type"]) == ("431", "invalid_request_error")
        assert error["message"] == "The request's headers must be at most 1024 bytes."
        assert ended(client)


def test_trailers_without_an_end(serve: Serve) -> None:
    server = serve(bounds=Bounds(header_bytes=1024))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connected(server.url) as client:
        client.sendall(head)
        server.until(lambda: server.services.gate._inside == 1)
        client.sendall(b"0\r\n" + b"x: y\r\n" * 12_000)
        assert ended(client)
    server.left()


def test_a_body_in_one_piece_with_its_headers(serve: Serve) -> None:
    server = serve(bounds=Bounds(header_bytes=1024))
    assert server.chat("x" * 400_000).status_code == 400


def test_a_body_that_does_not_arrive(serve: Serve) -> None:
    server = serve(services={"request_timeout_s": 0.2})
    with connected(server.url) as client:
        client.sendall(request_bytes("/v1/chat/completions", chat_body(), cut=1))
        answer = read_until(client, b"}}")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.2 s" in answer
        with pytest.raises((ConnectionError, AssertionError)):
            read_until(client, b"never")


def test_admin_routes_are_off_for_other_hosts(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.api.edge.LOOPBACK", {"192.0.2.1"})
    headers = {"authorization": "Bearer sk-admin"}
    for remote, status in ((False, 403), (True, 200)):
        server = serve(keys=Keys(admin=["sk-admin"]), services={"admin_remote": remote})
        assert server.client.get("/admin/models", headers=headers).status_code == status


def test_safety_headers(server: Running) -> None:
    for path in ("/health", "/nowhere"):
        headers = server.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
