"""LoRAs: ids of their own on their base's engine, over the scripted engine."""

from pathlib import Path
from typing import Any

import pytest

from tests.api.test_generate import ask, texts
from tests.conftest import MODEL, Running, Serve, make_adapter
from tests.sse import choices_of, events

LORA, FAR = "owner/lora", "owner/far"


@pytest.fixture
def adapted(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    make_adapter(tmp_path / "lora")
    loras = [{"id": LORA, "source": "./lora"}, {"id": FAR, "source": FAR}]
    server = serve(models=[{"id": MODEL, "loras": loras, "stop_token_ids": [7]}])
    server.engine()
    return server


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize(("model", "ending"), [(MODEL, "seed None"), (LORA, f"as {LORA}")])
def test_each_answers_under_its_own_id(
    adapted: Running, kind: str, model: str, ending: str
) -> None:
    body = ask(adapted, kind, model=model, max_tokens=100).json()
    assert body["model"] == model
    assert [text.endswith(ending) for text in texts(kind, body)] == [True]
    [sampling] = adapted.engine().generated
    assert sampling.lora == (LORA if model == LORA else None)
    assert sampling.stop_token_ids == (7,)


def test_streamed(adapted: Running) -> None:
    chunks = events(adapted.chat(model=LORA, stream=True).text)
    text = "".join(choice["delta"].get("content", "") for choice in choices_of(chunks))
    assert text.endswith(f"as {LORA}")


def test_a_lora_shares_its_bases_slot_and_is_counted_by_its_own_id(adapted: Running) -> None:
    assert adapted.chat(model=LORA).status_code == 200
    adapted.left()
    assert adapted.services.pool.slots.keys() == {MODEL}
    metrics = adapted.services.metrics.render().decode()
    assert f'tenuto_completion_tokens_total{{model="{LORA}"}}' in metrics


def test_counted_as_its_base(adapted: Running) -> None:
    counts = [
        adapted.client.post("/utils/token_counter", json={"model": model, "prompt": "abc"}).json()
        for model in (MODEL, LORA)
    ]
    assert [count["total_tokens"] for count in counts] == [3, 3]
    assert [count["model_used"] for count in counts] == [MODEL, LORA]


def test_the_model_in_the_path(adapted: Running) -> None:
    body: dict[str, Any] = {"prompt": "a", "model": MODEL}
    answer = adapted.client.post(f"/engines/{LORA}/completions", json=body).json()
    assert answer["model"] == LORA


def test_a_lora_that_is_not_on_this_host(adapted: Running) -> None:
    response = adapted.chat(model=FAR)
    assert response.status_code == 400
    assert f"tenuto models pull {FAR}" in response.json()["error"]["message"]
