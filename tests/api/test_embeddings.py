"""Embeddings over the scripted engine, through a real uvicorn."""

import base64
import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tenuto.engine.fake import FakeBackend, embedding_of
from tenuto.engine.types import Prompt
from tenuto.wire.bounds import Bounds
from tests.conftest import MODEL, Running, Serve, Setup, served
from tests.fuzz import JUNK, NUMBER, PROMPT, judge, mapping
from tests.models.pools import HeldBackend
from tests.sse import connected, request_bytes

EMBEDDER = "owner/embedder"
MODELS: list[dict[str, Any]] = [
    {"id": EMBEDDER, "task": "embed", "aliases": ["nick"], "max_model_len": 16},
    {"id": MODEL},
]
SETUP: dict[str, Any] = {"models": MODELS, "eager": (EMBEDDER, MODEL)}


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(tmp_path_factory.mktemp("embedding"), Setup(**SETUP)) as running:
        running.engine(MODEL)
        yield running


def embed(server: Running, content: Any = "abc", **fields: Any) -> httpx.Response:
    body = {"model": EMBEDDER, "input": content, **fields}
    return server.client.post("/v1/embeddings", json=body)


def vector_of(text: str) -> list[float]:
    return embedding_of(Prompt(list(text.encode())))


def blamed(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["type"], error["param"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("abc", ["abc"]),
        (["abc"], ["abc"]),
        (["b", "abc"], ["b", "abc"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
def test_each_input_in_its_order(embedding: Running, content: Any, texts: list[str]) -> None:
    assert embed(embedding, content).json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector_of(text)}
            for index, text in enumerate(texts)
        ],
        "model": EMBEDDER,
        "usage": {
            "prompt_tokens": sum(map(len, texts)),
            "total_tokens": sum(map(len, texts)),
        },
    }


def test_base64_holds_the_same_floats(embedding: Running) -> None:
    assert embed(embedding, encoding_format="float").json() == embed(embedding).json()
    [row] = embed(embedding, encoding_format="base64").json()["data"]
    data = base64.b64decode(row["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == vector_of("abc")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "/embeddings",
        f"/engines/{EMBEDDER}/embeddings",
        f"/openai/deployments/{EMBEDDER}/embeddings",
    ],
)
def test_routes(embedding: Running, path: str) -> None:
    model = {} if EMBEDDER in path else {"model": "nick"}
    answer = embedding.client.post(path, json={"input": "abc", **model}).json()
    assert answer["data"][0]["embedding"] == vector_of("abc")
    assert answer["model"] == model.get("model", EMBEDDER)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 4}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [256]}, "input"),
        ({"input": "x" * 17}, "input"),
        ({"input": ["a", "x" * 17]}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 2}, "dimensions"),
        ({"dimensions": "many"}, "dimensions"),
    ],
)
def test_refused(serve: Serve, fields: dict[str, Any], param: str) -> None:
    server = serve(**SETUP, bounds=Bounds(inputs=3))
    server.engine(MODEL)
    response = embed(server, **{"content": "abc", **fields})
    assert blamed(response) == (400, "BadRequestError", param)
    server.left()


@pytest.mark.parametrize("content", [{"secret": 1}, ["a", ["secret"]], [1, "secret"]])
def test_texts_are_never_repeated(embedding: Running, content: Any) -> None:
    message = embed(embedding, content).json()["error"]["message"]
    assert message.startswith("input must be a string, a list of strings")
    assert "secret" not in message


def test_the_context_is_all_for_the_text(embedding: Running) -> None:
    assert embed(embedding, "x" * 16).json()["usage"]["prompt_tokens"] == 16


def test_missing_input(embedding: Running) -> None:
    response = embedding.client.post("/v1/embeddings", json={"model": EMBEDDER})
    assert blamed(response) == (400, "invalid_request_error", "input")


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "said"),
    [
        (range(1, 5), 3, 5, "must be from 1 to 4, got 5"),
        (range(1, 5), 1, 0, "must be from 1 to 4, got 0"),
        ((2, 4), 2, 3, "must be one of 2, 4, got 3"),
        ((), None, 4, "must be left out"),
    ],
)
def test_dimensions(serve: Serve, allowed: Any, good: int | None, bad: int, said: str) -> None:
    server = serve(**SETUP, backend=FakeBackend(dimensions=allowed))
    server.engine(MODEL)
    [row] = embed(server, dimensions=good).json()["data"]
    assert row["embedding"] == vector_of("abc")[:good]
    response = embed(server, dimensions=bad)
    assert blamed(response) == (400, "BadRequestError", "dimensions")
    assert said in response.json()["error"]["message"]


def test_a_model_does_its_task_alone(embedding: Running) -> None:
    refused = [
        embedding.chat(model=EMBEDDER),
        embedding.complete(model="nick"),
        embed(embedding, model=MODEL),
        embedding.client.post("/tokenize", json={"model": EMBEDDER, "messages": []}),
    ]
    assert {blamed(response) for response in refused} == {(400, "BadRequestError", "model")}
    said = [response.json()["error"]["message"] for response in refused]
    assert said[:3] == [
        f"{EMBEDDER} makes embeddings: use /v1/embeddings.",
        "nick makes embeddings: use /v1/embeddings.",
        f"{MODEL} generates text: use /v1/chat/completions or /v1/completions.",
    ]


def test_texts_are_counted(embedding: Running) -> None:
    body = {"model": EMBEDDER, "prompt": "abc"}
    assert embedding.client.post("/utils/token_counter", json=body).json()["total_tokens"] == 3


def test_fields_without_effect_are_named(embedding: Running) -> None:
    response = embed(embedding, user="me", input_type="query")
    assert response.headers["x-tenuto-ignored-params"] == "input_type"


def test_model_info_names_the_task(embedding: Running) -> None:
    rows = embedding.client.get("/v1/model/info").json()["data"]
    assert [row["model_info"]["task"] for row in rows] == ["embed", "generate"]


@pytest.mark.usefixtures("quick_restarts")
@pytest.mark.parametrize("losses", [1, 2])
def test_a_lost_engine(serve: Serve, losses: int) -> None:
    """The texts are given to the next one, once."""
    server = serve(**SETUP, backend=HeldBackend(is_held=True))
    engine = server.engine(EMBEDDER)
    with ThreadPoolExecutor(1) as aside:
        asking = aside.submit(embed, server, ["a", "b"])
        for _ in range(losses):
            server.wait(engine.started)
            server.call(engine.lose)
            engine = server.engine_after(engine, EMBEDDER)
        server.call(engine.go.set)
        response = asking.result()
    if losses == 1:
        found = [row["embedding"] for row in response.json()["data"]]
        assert found == [vector_of("a"), vector_of("b")]
    else:
        assert blamed(response) == (503, "ServiceUnavailableError", None)
    server.left()


def test_a_client_who_leaves_ends_its_requests(serve: Serve) -> None:
    server = serve(**SETUP)
    server.engine(MODEL)
    engine = server.engine(EMBEDDER)
    server.call(engine.go.clear)
    body = {"model": EMBEDDER, "input": ["a", "b"]}
    with connected(server.url) as client:
        client.sendall(request_bytes("/v1/embeddings", body))
        server.wait(engine.started)
    server.wait(engine.idle)
    server.left()


def test_tokens_are_counted(serve: Serve) -> None:
    server = serve(**SETUP)
    server.engine(MODEL)
    assert embed(server, ["a", "bc"]).status_code == 200
    server.left()
    metrics = server.services.metrics.render().decode()
    assert f'tenuto_prompt_tokens_total{{model="{EMBEDDER}"}} 3.0' in metrics


def test_random_bodies_are_answered_or_refused(embedding: Running) -> None:
    make = mapping({"input": PROMPT}, {"encoding_format": JUNK, "dimensions": NUMBER}, 1)
    for seed in range(300):
        body = make(random.Random(seed)) | {"model": EMBEDDER}
        judge(embedding.client.post("/v1/embeddings", json=body))
