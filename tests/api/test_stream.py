"""Streams: their order, and that a client who leaves leaves nothing behind, whatever it did."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.slow_senders import TimedProtocol
from tests.conftest import Running, Serve
from tests.engines import FaultyBackend, StepwiseBackend, StepwiseEngine
from tests.sse import DONE, chat_body, choices_of, connected, events, read_until, request_bytes

PATHS = ["/v1/chat/completions", "/v1/completions"]
SECRET = "my-secret-prompt"
USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    return {**chat_body(**fields), "prompt": "Hi"}


def stepwise(serve: Serve, allowed: int | None = 1, **fields: Any) -> tuple[Running, Any]:
    """A server whose engine hands out `allowed` steps and then waits."""
    server = serve(backend=StepwiseBackend(allowed=allowed, **fields))
    engine = server.engine()
    assert isinstance(engine, StepwiseEngine)
    return server, engine


@pytest.fixture
def held(own: Running) -> FakeEngine:
    """The engine of `own`, which hands out nothing yet."""
    engine = own.engine()
    own.call(engine.go.clear)
    return engine


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_chat_stream_in_order(server: Running) -> None:
    response = server.chat(stream=True, max_tokens=3, n=2)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    stream = events(response.text)
    assert stream[-1] == DONE
    assert len({chunk["id"] for chunk in stream[:-1]}) == 1
    for index in (0, 1):
        chunks = choices_of(stream, index)
        assert [chunk["delta"] for chunk in chunks] == [
            {"role": "assistant", "content": ""},
            {"content": "r"},
            {"content": "e"},
            {"content": "p"},
            {},
        ]
        assert [chunk["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]


def test_completion_stream_in_order(server: Running) -> None:
    stream = events(server.complete(stream=True, max_tokens=3, n=2).text)
    assert stream[-1] == DONE
    for index in (0, 1):
        chunks = choices_of(stream, index)
        assert [chunk["text"] for chunk in chunks] == ["r", "e", "p", ""]
        assert [chunk["finish_reason"] for chunk in chunks] == [None] * 3 + ["length"]


@pytest.mark.parametrize("path", PATHS)
def test_usage_comes_once_and_last_when_asked_for(server: Running, path: str) -> None:
    response = server.client.post(path, json=body_for(path, max_tokens=3, n=2, **USAGE))
    *chunks, usage, done = events(response.text)
    assert done == DONE
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("path", PATHS)
def test_no_usage_otherwise(server: Running, path: str) -> None:
    response = server.client.post(path, json=body_for(path, max_tokens=3, stream=True))
    assert "usage" not in response.text


def test_an_unfinished_character_is_held_back(serve: Serve) -> None:
    server = serve(backend=FakeBackend(reply=lambda prompt, sampling, index: "aü世"))
    chunks = choices_of(events(server.chat(stream=True).text))
    assert [chunk["delta"].get("content") for chunk in chunks] == ["", "a", "ü", "世", None]


def test_a_silent_stream_is_kept_alive(serve: Serve) -> None:
    server = serve(backend=StepwiseBackend(), keep_alive_s=0.05)
    engine = server.engine()
    with server.client.stream("POST", PATHS[0], json=chat_body(stream=True)) as response:
        text = ""
        for part in response.iter_text():
            text += part
            if text.count(": keep-alive\n\n") == 2:
                server.call(engine.go.set)
    assert events(text)[-1] == DONE
    assert re.fullmatch(r"((data: [^\n]+|: keep-alive)\n\n)+", text)


def test_a_busy_stream_needs_no_comment(server: Running) -> None:
    assert "keep-alive" not in server.chat(stream=True).text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_leaving_before_the_first_token(
    own: Running, held: FakeEngine, path: str, stream: bool
) -> None:
    with connected(own.url) as client:
        client.sendall(request_bytes(path, body_for(path, stream=stream, n=2)))
        own.wait(held.started)
        assert held.running == 2
        assert own.services.pool.slots["demo"].leases == 1
    own.wait(held.idle)
    own.left()


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"prompt": ["a", "b"]}])
@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_mid_stream(serve: Serve, path: str, fields: dict[str, Any]) -> None:
    server, engine = stepwise(serve)
    with connected(server.url) as client:
        client.sendall(request_bytes(path, {**body_for(path, stream=True), **fields}))
        read_until(client, b"data: ")
        assert engine.running > 0
    server.wait(engine.idle)
    server.left()


def test_leaving_while_candidates_are_ranked(serve: Serve) -> None:
    server = serve()
    engine = server.engine()
    server.call(engine.go.clear)
    with connected(server.url) as client:
        client.sendall(request_bytes(PATHS[0], chat_body(stream=True, best_of=4)))
        server.wait(engine.started)
        assert engine.running == 4
    server.wait(engine.idle)
    server.left()


def blocked(server: Running, engine: StepwiseEngine) -> int:
    """Steps handed out by the time the stream no longer moves, though the loop runs."""
    still, handed = 0, -1
    while still < 20:
        still = still + 1 if engine.handed == handed and handed > 0 else 0
        handed = engine.handed
        server.call(lambda: None)
    return handed


@contextmanager
def unread(server: Running, engine: StepwiseEngine) -> Iterator[socket.socket]:
    """The server's send blocks: the client's buffer is small, and the answer is not."""
    fields = {"stream": True, "logprobs": True, "top_logprobs": 20}
    with connected(server.url, receive_buffer=4096) as client:
        client.sendall(request_bytes(PATHS[0], chat_body(**fields)))
        read_until(client, b"data: ")
        assert blocked(server, engine) < 6000
        yield client


def long_winded(serve: Serve) -> tuple[Running, StepwiseEngine]:
    return stepwise(
        serve, None, max_model_len=50_000, reply=lambda prompt, sampling, index: "x" * 6000
    )


def test_leaving_while_not_reading(serve: Serve) -> None:
    server, engine = long_winded(serve)
    with unread(server, engine):
        assert engine.running == 1
    server.wait(engine.idle)
    server.left()


def test_never_reading(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(TimedProtocol, "stalled_s", 0.5)
    server, engine = long_winded(serve)
    with unread(server, engine):
        server.wait(engine.idle)
        server.left()
    assert engine.handed < 6000
    lines = [r.getMessage() for r in caplog.records if r.name == "tenuto.slow_senders"]
    assert lines == ["a client read nothing for 0.5 s: its connection is ended"]
    assert "ASGI" not in caplog.text


def test_a_slow_reader_gets_everything(serve: Serve) -> None:
    server, engine = long_winded(serve)
    with unread(server, engine) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert DONE.encode() in read_until(client, b"data: [DONE]\n\n")
    assert engine.handed == 6000
    server.left()


@pytest.mark.parametrize("path", PATHS)
def test_engine_lost_in_mid_stream(serve: Serve, path: str) -> None:
    server, engine = stepwise(serve)
    with server.client.stream("POST", path, json=body_for(path, n=2, **USAGE)) as response:
        assert response.status_code == 200
        parts = response.iter_text()
        text = next(parts)
        server.call(engine.lose)
        text += "".join(parts)
    stream = events(text)
    assert stream[-1]["error"]["code"] == "503"
    assert stream[-1]["error"]["type"] == "ServiceUnavailableError"
    assert DONE not in stream
    assert not any(choice["finish_reason"] for i in (0, 1) for choice in choices_of(stream, i))
    assert "usage" not in text
    server.left()


@pytest.mark.usefixtures("quick_restarts")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_engine_lost_before_the_first_token(
    own: Running, held: FakeEngine, aside: ThreadPoolExecutor, path: str, stream: bool
) -> None:
    """Its client has received nothing: the request is run again."""
    asking = aside.submit(own.client.post, path, json=body_for(path, stream=stream))
    own.wait(held.started)
    own.call(held.lose)
    response = asking.result()
    assert response.status_code == 200
    assert (DONE in events(response.text)) is stream
    assert len(own.engine_after(held).generated) == 1
    own.left()


@pytest.mark.usefixtures("quick_restarts")
@pytest.mark.parametrize("losses", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"n": 2, "best_of": 3, "stream": True}])
def test_engine_lost_in_the_middle_of_an_unstreamed_answer(
    serve: Serve, aside: ThreadPoolExecutor, losses: int, fields: dict[str, Any]
) -> None:
    """It is run again, once. A stream of ranked candidates has no byte before all are there."""
    server, engine = stepwise(serve)
    asking = aside.submit(server.complete, ["a", "b"], **fields)
    for _ in range(losses):
        server.wait(engine.started)
        server.call(engine.lose)
        engine = server.engine_after(engine)
    assert isinstance(engine, StepwiseEngine)
    engine.allowed = None
    server.call(engine.go.set)
    response = asking.result()
    if losses == 1:
        assert response.status_code == 200
        assert len(engine.generated) == 2
    else:
        unavailable(response)
        assert engine.generated == []
    server.left()


def unavailable(response: httpx.Response) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (503, "ServiceUnavailableError")
    assert error["param"] is None
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.usefixtures("quick_restarts")
def test_after_a_loss_the_model_comes_back(own: Running) -> None:
    engine = own.engine()
    own.call(engine.lose)
    assert own.chat().status_code == 200
    assert len(own.engine_after(engine).generated) == 1
    assert engine.generated == []
    own.left()


@pytest.mark.usefixtures("quick_restarts")
def test_a_model_whose_engine_is_lost_again_and_again(own: Running) -> None:
    engine = own.engine()
    for _ in range(2):
        assert own.chat().status_code == 200
        own.call(engine.lose)
        engine = own.engine_after(engine)
    assert own.chat().status_code == 200
    own.call(engine.lose)
    response = own.chat()
    unavailable(response)
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", PATHS)
def test_our_own_fault_in_mid_stream(
    serve: Serve, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(backend=FaultyBackend())
    body = {**chat_body(stream=True), "prompt": SECRET}
    response = server.client.post(path, json=body)
    stream = events(response.text)
    assert response.status_code == 200
    assert stream[-1]["error"]["type"] == "internal_server_error"
    assert DONE not in stream
    assert "ZeroDivisionError" in caplog.text
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("tenuto")]
    assert SECRET not in response.text + "".join(ours)
    server.left()
