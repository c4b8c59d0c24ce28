"""More models than have room, through a real uvicorn: who loads, who waits, who leaves."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tenuto.access.keys import Keys
from tenuto.engine.types import EngineSpec
from tenuto.models.pool import Terms
from tests.conftest import MODEL, Running, Serve
from tests.models.pools import ClosableEngine, HeldBackend, Limited, only
from tests.sse import DONE, chat_body, choices_of, connected, events, read_until, request_bytes

PATHS = ["/v1/chat/completions", "/v1/completions"]
COLD = {"models": [{"id": MODEL}, {"id": "cold"}], "eager": ()}


@dataclass
class NamingBackend(HeldBackend):
    """Its models answer with their names."""

    async def engine(self, spec: EngineSpec) -> ClosableEngine:
        engine = await super().engine(spec)
        assert isinstance(engine, ClosableEngine)
        engine.reply = lambda prompt, sampling, index: spec.model_id
        return engine


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


def held() -> NamingBackend:
    """No engine starts before `told` is set."""
    backend = NamingBackend()
    backend.told.clear()
    return backend


def body_for(model: str, **fields: Any) -> dict[str, Any]:
    return chat_body(**{"model": model, "prompt": "Hi", **fields})


def num_waiting(server: Running) -> int:
    return sum(len(slot.queue) for slot in server.services.pool.slots.values())


def loading(server: Running, model: str) -> None:
    server.until(lambda: server.services.pool.slots[model].state == "loading")


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        stream = events(response.text)
        assert stream[-1] == DONE
        return "".join(chunk["delta"].get("content", "") for chunk in choices_of(stream))
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_cold_model_is_loaded_and_answers(
    serve: Serve, aside: ThreadPoolExecutor, path: str, stream: bool
) -> None:
    backend = held()
    server = serve(**COLD, backend=backend)
    asking = aside.submit(server.client.post, path, json=body_for("cold", stream=stream))
    loading(server, "cold")
    assert server.client.get("/health").status_code == 200
    assert not asking.done()
    server.call(backend.told.set)
    response = asking.result()
    assert (response.status_code, "cold" in response.text) == (200, True)
    assert backend.starts == ["cold"]
    server.left()


@pytest.mark.parametrize("fields", [{"temperature": 9}, {"prompt": "x" * 5000, "messages": []}])
def test_what_is_refused_loads_no_model(serve: Serve, fields: dict[str, Any]) -> None:
    backend = NamingBackend()
    server = serve(**COLD, backend=backend)
    response = server.client.post(PATHS[1], json=body_for("cold", **fields))
    assert response.status_code == 400
    assert server.client.post("/tokenize", json={"model": "cold", "prompt": "a"}).is_success
    server.left()
    assert backend.starts == []


def gone(server: Running) -> None:
    """The client's request has left the server, whatever it waited for."""
    server.until(lambda: server.services.gate._inside == 0)
    assert num_waiting(server) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_model_loads(serve: Serve, stream: bool) -> None:
    """The load goes on, for the next one."""
    backend = held()
    server = serve(**COLD, backend=backend)
    with connected(server.url) as client:
        client.sendall(request_bytes(PATHS[0], body_for("cold", stream=stream)))
        loading(server, "cold")
    gone(server)
    server.call(backend.told.set)
    assert said(server.chat(model="cold")) == "cold"
    assert backend.starts == ["cold"]
    assert len(server.engine("cold").generated) == 1
    server.left()
    metrics = server.services.metrics.render().decode()
    assert 'model="cold",route="/v1/chat/completions",status="499"} 1.0' in metrics


def test_a_client_that_leaves_before_its_model_loads(
    serve: Serve, aside: ThreadPoolExecutor
) -> None:
    backend = held()
    server = serve(**COLD, backend=backend)
    asking = aside.submit(server.chat)
    loading(server, MODEL)
    with connected(server.url) as client:
        client.sendall(request_bytes(PATHS[0], body_for("cold")))
        server.until(lambda: num_waiting(server) == 2)
    server.until(lambda: num_waiting(server) == 1)
    server.call(backend.told.set)
    assert said(asking.result()) == MODEL
    server.left()
    assert backend.starts == [MODEL]


def test_twenty_requests_over_three_models_of_which_one_fits(
    serve: Serve, aside: ThreadPoolExecutor
) -> None:
    names, backend = ["a", "b", "c"], held()
    rows = [{"id": name} for name in names]
    server = serve(models=rows, eager=(), backend=backend, terms=Terms(Limited(only(1))))

    def ask(number: int) -> None:
        model = names[number % 3]
        assert said(server.chat(model=model, stream=number % 2 == 0)) == model

    first = [aside.submit(ask, number) for number in range(20)]
    server.until(lambda: num_waiting(server) == 20)
    server.call(backend.told.set)
    for asking in first:
        asking.result()
    # Each model serves all who wait for it before it makes room.
    assert sorted(backend.starts) == names
    for asking in [aside.submit(ask, number) for number in range(60)]:
        asking.result()
    server.left()


def test_the_keys_of_a_busy_model_take_turns(serve: Serve, aside: ThreadPoolExecutor) -> None:
    backend = HeldBackend(capacity=1, is_held=True)
    server = serve(backend=backend, keys=Keys(["first-key", "other-key"]))

    def ask(seed: int, key: str) -> None:
        headers = {"authorization": f"Bearer {key}"}
        body = chat_body(seed=seed)
        assert server.client.post(PATHS[0], json=body, headers=headers).status_code == 200

    engine = server.engine()
    asking = [aside.submit(ask, 1, "first-key")]
    server.wait(engine.started)
    for seed, key in ((2, "first-key"), (3, "first-key"), (4, "other-key")):
        asking.append(aside.submit(ask, seed, key))
        server.until(lambda: num_waiting(server) == len(asking) - 1)
    server.call(engine.go.set)
    for one in asking:
        one.result()
    assert [sampling.seed for sampling in engine.generated] == [1, 2, 4, 3]
    server.left()


def test_too_many_who_wait(serve: Serve, aside: ThreadPoolExecutor) -> None:
    backend = held()
    server = serve(**COLD, backend=backend, terms=Terms(max_waiting=1, turn_s=4.5))
    asking = aside.submit(server.chat, model="cold")
    loading(server, "cold")
    response = server.chat(model="cold")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "65"
    assert "x-should-retry" not in response.headers
    assert response.json()["error"]["message"] == "cold has 1 requests waiting. Please retry."
    server.call(backend.told.set)
    assert said(asking.result()) == "cold"


def test_a_model_that_never_fits(serve: Serve) -> None:
    server = serve(**COLD, terms=Terms(Limited(lambda awake, asleep: "cold" not in awake)))
    response = server.chat(model="cold")
    assert response.status_code == 503
    assert response.headers["x-should-retry"] == "false"
    assert "it is larger than the memory for models" in response.json()["error"]["message"]
    assert server.chat().status_code == 200


def test_the_end_of_the_server_ends_the_wait_for_a_model(
    serve: Serve, aside: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """And the start's own loading, which is no failed start."""
    server = serve(backend=held(), drain_s=0.05)
    asking = aside.submit(server.chat)
    server.until(lambda: num_waiting(server) == 2)
    server.call(lambda: server.process.handle_exit(signal.SIGTERM, None))
    response = asking.result()
    assert response.status_code == 503
    assert "shutting down" in response.json()["error"]["message"]
    server.wait_ended()
    assert "shutting down" not in caplog.text


WAIT = {"models": [{"id": MODEL}, {"id": "cold", "wait": "stream"}], "eager": ()}


@pytest.mark.parametrize("fields", [{}, {"n": 1, "best_of": 2}])
def test_a_stream_that_begins_while_its_model_loads(serve: Serve, fields: dict[str, Any]) -> None:
    backend = held()
    server = serve(**WAIT, backend=backend, keep_alive_s=0.05)
    with connected(server.url) as client:
        body = body_for("cold", stream=True, **fields)
        client.sendall(request_bytes(PATHS[0], body))
        begun = read_until(client, b": keep-alive\n\n\r\n")
        assert begun.startswith(b"HTTP/1.1 200 OK")
        assert b"data:" not in begun
        read_until(client, b": keep-alive\n\n\r\n")
        server.call(backend.told.set)
        assert b'"finish_reason":"stop"' in read_until(client, b"data: [DONE]")
    server.left()


@pytest.mark.usefixtures("quick_restarts")
def test_a_stream_that_has_begun_and_whose_model_does_not_load(serve: Serve) -> None:
    backend = NamingBackend(errors=[RuntimeError("no")] * 3)
    server = serve(**WAIT, backend=backend)
    response = server.chat(model="cold", stream=True)
    assert response.status_code == 200
    assert events(response.text)[-1]["error"]["code"] == "503"
    server.left()


def test_a_client_that_leaves_a_stream_whose_model_loads(serve: Serve) -> None:
    backend = held()
    server = serve(**WAIT, backend=backend)
    with connected(server.url) as client:
        client.sendall(request_bytes(PATHS[0], body_for("cold", stream=True)))
        read_until(client, b": keep-alive")
    gone(server)
    server.call(backend.told.set)
    server.left()


def test_ready_models_stream_with_their_true_status(serve: Serve) -> None:
    server = serve(**{**WAIT, "eager": ("cold",)}, backend=NamingBackend())
    server.engine("cold")
    response = server.chat(model="cold", stream=True, temperature=9)
    assert response.status_code == 400
    assert not server.chat(model="cold", stream=True).text.startswith(":")


@pytest.mark.parametrize("header", ["x-stainless-read-timeout", "x-stainless-timeout"])
def test_who_would_not_wait_so_long_is_told(serve: Serve, header: str) -> None:
    """The OpenAI clients say how long they wait for the first byte."""
    backend = held()
    server = serve(**COLD, backend=backend)
    response = server.client.post(PATHS[0], json=body_for("cold"), headers={header: "0.2"})
    assert response.status_code == 503
    assert "not ready within 0.2 s" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) > 1
    server.call(backend.told.set)
    server.left()
