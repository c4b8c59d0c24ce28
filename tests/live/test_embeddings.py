"""Embedding models on real vLLM, against the same computed by transformers."""

import base64
import struct
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoTokenizer, XLMRobertaModel

from tests.live.conftest import LiveServer
from tests.live.made import CONTEXT, EMBEDDER, HIDDEN

pytestmark = pytest.mark.live

TEXTS = ["Hello!", "What is Tenuto?", "Grüß Gott, 你好 🎼", "the cat sat on the mat " * 4, "a"]
Vector = list[float]


@pytest.fixture(scope="module")
def expected(extended: LiveServer) -> Callable[[str], Vector]:
    """The first token's state, normalised: what vLLM takes where a checkpoint names no pooling."""
    encoder = extended.log.parent / "encoder"
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = XLMRobertaModel.from_pretrained(encoder, add_pooling_layer=False).eval()

    def compute(text: str) -> Vector:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        vector: Vector = torch.nn.functional.normalize(states[0, 0], dim=0).tolist()
        return vector

    return compute


def embed(server: LiveServer, content: Any, **fields: Any) -> httpx.Response:
    return server.client.post(
        "/v1/embeddings", json={"model": EMBEDDER, "input": content, **fields}
    )


def vectors(server: LiveServer, content: Any, **fields: Any) -> list[Vector]:
    response = embed(server, content, **fields)
    assert response.status_code == 200, response.text
    rows = response.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [row["embedding"] for row in rows]


def cosine(one: Vector, other: Vector) -> float:
    pair = torch.tensor([one, other])
    return float(torch.nn.functional.cosine_similarity(pair[0], pair[1], 0))


@pytest.mark.parametrize("text", TEXTS)
def test_as_transformers_computes(
    extended: LiveServer, expected: Callable[[str], Vector], text: str
) -> None:
    [vector] = vectors(extended, text)
    assert cosine(vector, expected(text)) > 0.999
    assert all(cosine(vector, expected(other)) < 0.99 for other in TEXTS if other != text)
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)


def test_a_batch_is_its_singles(extended: LiveServer) -> None:
    singles = [vectors(extended, text)[0] for text in TEXTS]
    for batch in (TEXTS, TEXTS[::-1]):
        found = dict(zip(batch, vectors(extended, batch), strict=True))
        for text, single in zip(TEXTS, singles, strict=True):
            assert found[text] == pytest.approx(single, abs=1e-4)


def test_token_ids_are_their_text(extended: LiveServer) -> None:
    ids = [
        extended.client.post("/tokenize", json={"model": EMBEDDER, "prompt": text}).json()
        for text in TEXTS
    ]
    usage = embed(extended, TEXTS).json()["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == sum(row["count"] for row in ids)
    found = vectors(extended, [row["tokens"] for row in ids])
    for one, other in zip(found, vectors(extended, TEXTS), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert vectors(extended, ids[0]["tokens"])[0] == pytest.approx(found[0], abs=1e-4)


def test_base64_equals_float(extended: LiveServer) -> None:
    [text] = vectors(extended, TEXTS[1], encoding_format="base64")
    data = base64.b64decode(str(text))
    assert list(struct.unpack(f"<{HIDDEN}f", data)) == vectors(extended, TEXTS[1])[0]


def test_dimensions(extended: LiveServer, expected: Callable[[str], Vector]) -> None:
    [short] = vectors(extended, TEXTS[1], dimensions=16)
    assert len(short) == 16
    assert cosine(short, expected(TEXTS[1])[:16]) > 0.999
    assert sum(value * value for value in short) == pytest.approx(1, abs=1e-4)
    for wrong in (0, 17, HIDDEN + 1):
        error = embed(extended, "a", dimensions=wrong).json()["error"]
        assert (error["type"], error["param"]) == ("BadRequestError", "dimensions")


def test_the_context_is_the_limit(extended: LiveServer) -> None:
    assert embed(extended, [9] * CONTEXT).json()["usage"]["total_tokens"] == CONTEXT
    for content in ([9] * (CONTEXT + 1), "hm " * CONTEXT, [[9], [9] * (CONTEXT + 1)]):
        response = embed(extended, content)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "input"), error
    error = embed(extended, [10**6]).json()["error"]
    assert (error["type"], error["param"]) == ("BadRequestError", "input")
    assert extended.unfinished(EMBEDDER) == 0


def test_with_the_openai_client(extended: LiveServer) -> None:
    """It asks for base64 unless told otherwise."""
    with openai.OpenAI(base_url=f"{extended.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=EMBEDDER, input=TEXTS)
        plain = client.embeddings.create(model=EMBEDDER, input=TEXTS[0], encoding_format="float")
        assert (answer.object, answer.model) == ("list", EMBEDDER)
        assert [row.index for row in answer.data] == list(range(len(TEXTS)))
        assert answer.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-4)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=EMBEDDER, messages=[{"role": "user", "content": "Hi"}]
            )
    assert caught.value.param == "model"
    assert "makes embeddings" in caught.value.message
