"""What is written down of a request, through a real uvicorn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tenuto.access.keys import Keys
from tenuto.access.schema import usage
from tests.conftest import MODEL, Running, Setup, served
from tests.engines import FaultyBackend, StepwiseBackend, StepwiseEngine
from tests.sse import chat_body, connected, request_bytes

SECRET = "my-secret-prompt"
BEARER = {"authorization": "Bearer sk-user"}


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Running]:
    keys = Keys(["sk-user"], ["sk-admin"])
    with served(tmp_path, Setup(keys=keys, state_dir=tmp_path / "state")) as running:
        running.engine()
        running.client.headers.update(BEARER)
        yield running


def written(server: Running) -> list[dict[str, Any]]:
    """All requests so far."""
    assert server.services.recorder is not None
    assert server.services.key_watcher is not None
    server.services.recorder.flush()
    with server.services.key_watcher.store.engine.connect() as connection:
        rows = connection.execute(select(usage).order_by(usage.c.id)).mappings()
        return [dict(row) for row in rows]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(metered: Running, stream: bool) -> None:
    metered.chat(SECRET, stream=stream, max_tokens=3)
    metered.left()
    (row,) = written(metered)
    assert (row["model"], row["endpoint"], row["status"]) == (MODEL, "chat_completions", 200)
    assert row["key_id"].startswith("fixed-")
    assert row["prompt_tokens"] == len(f"<user>{SECRET}<assistant>")
    assert (row["completion_tokens"], row["generated_tokens"]) == (3, 3)
    assert row["finish"] == "length"
    assert (row["first_token_s"] is not None) == stream
    assert 0 < row["duration_s"] < 10
    assert SECRET not in repr(row)


@pytest.mark.parametrize("stream", [False, True])
def test_all_candidates(metered: Running, stream: bool) -> None:
    metered.complete("Hi", best_of=4, n=1, max_tokens=5, stream=stream)
    metered.left()
    (row,) = written(metered)
    assert (row["completion_tokens"], row["generated_tokens"]) == (5, 20)


def test_what_is_refused(metered: Running) -> None:
    metered.chat(temperature=9)
    metered.chat(model="nope")
    metered.client.post("/v1/chat/completions", json=chat_body(), headers={"authorization": "x"})
    metered.client.get("/v1/models")
    metered.left()
    rows = written(metered)
    assert [(row["model"], row["status"]) for row in rows] == [(MODEL, 400), ("", 400)]
    assert [row["prompt_tokens"] for row in rows] == [0, 0]


def test_a_client_that_leaves(metered: Running) -> None:
    engine = metered.engine()
    metered.call(engine.go.clear)
    body = request_bytes("/v1/completions", {"model": MODEL, "prompt": "Hi", "stream": True})
    with connected(metered.url) as client:
        client.sendall(with_bearer(body))
        metered.wait(engine.started)
    metered.left()
    (row,) = written(metered)
    assert (row["status"], row["endpoint"]) == (499, "completions")
    assert (row["prompt_tokens"], row["generated_tokens"]) == (2, 0)


def test_a_client_that_leaves_before_the_whole_answer(tmp_path: Path) -> None:
    """One of two prompts has its answer by then: that was generated, and not returned."""
    backend = StepwiseBackend(allowed=1)
    setup = Setup(keys=Keys(["sk-user"]), state_dir=tmp_path / "state", backend=backend)
    with served(tmp_path, setup) as server:
        engine = server.engine()
        assert isinstance(engine, StepwiseEngine)
        body = {"model": MODEL, "prompt": ["Hi", "you"], "max_tokens": 7}
        with connected(server.url) as client:
            client.sendall(with_bearer(request_bytes("/v1/completions", body)))
            server.until(lambda: engine.handed == 1)
        server.left()
        (row,) = written(server)
    assert (row["status"], row["prompt_tokens"]) == (499, 5)
    assert (row["completion_tokens"], row["generated_tokens"]) == (0, 7)


def test_an_engine_that_breaks_before_the_whole_answer(tmp_path: Path) -> None:
    setup = Setup(keys=Keys(["sk-user"]), state_dir=tmp_path / "state", backend=FaultyBackend())
    with served(tmp_path, setup) as server:
        server.client.headers.update(BEARER)
        assert server.complete("Hi", max_tokens=7).status_code == 500
        server.left()
        (row,) = written(server)
    assert (row["prompt_tokens"], row["generated_tokens"]) == (2, 7)


def test_embeddings_that_nobody_waits_for(tmp_path: Path) -> None:
    models = [{"id": MODEL, "task": "embed"}]
    setup = Setup(models=models, keys=Keys(["sk-user"]), state_dir=tmp_path / "state")
    with served(tmp_path, setup) as server:
        engine = server.engine()
        server.call(engine.go.clear)
        body = {"model": MODEL, "input": "Hi"}
        with connected(server.url) as client:
            client.sendall(with_bearer(request_bytes("/v1/embeddings", body)))
            server.wait(engine.started)
        server.left()
        (row,) = written(server)
    assert (row["status"], row["prompt_tokens"], row["generated_tokens"]) == (499, 2, 0)


def with_bearer(request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nauthorization: Bearer sk-user\r\n", 1)


def test_the_owner_sees_it(metered: Running) -> None:
    metered.chat(max_tokens=2)
    metered.left()
    written(metered)
    metered.services.gate.draining = False
    admin = {"authorization": "Bearer sk-admin"}
    answer = metered.client.get("/admin/usage?by=model", headers=admin)
    assert answer.status_code == 200
    (row,) = answer.json()["data"]
    assert (row["model"], row["requests"], row["completion_tokens"]) == (MODEL, 1, 2)
    assert metered.client.get("/admin/usage", headers=BEARER).status_code == 403


def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with served(tmp_path, Setup(state_dir=state)) as running:
        for _ in range(5):
            assert running.chat().status_code == 200
    with served(tmp_path, Setup(state_dir=state)) as running:
        assert [row["key_id"] for row in written(running)] == [""] * 5
