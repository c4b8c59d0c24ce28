"""Which models there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running, Setup, make_adapter, served

LORAS = [{"id": "owner/lora", "source": "./lora"}, {"id": "far-lora", "source": "owner/far-lora"}]
MODELS: list[dict[str, Any]] = [
    {
        "id": "demo",
        "aliases": ["nick"],
        "license": "MIT",
        "max_model_len": 512,
        "loras": LORAS,
    },
    {"id": "owner/cold"},
    {"id": "far", "source": "owner/far", "loras": [{"id": "adrift", "source": "./lora"}]},
]


def card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1677610602, "owned_by": "openai"}


@contextmanager
def serving(directory: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_CACHE", str(directory / "hub"))
        make_adapter(directory / "lora")
        with served(directory, Setup(models=MODELS)) as running:
            running.engine()
            yield running


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("several")) as running:
        yield running


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_list_as_the_hosted_api_answers(several: Running, prefix: str) -> None:
    assert several.client.get(f"{prefix}/models").json() == {
        "data": [card("demo"), card("owner/lora"), card("owner/cold")],
        "object": "list",
    }


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("name", ["demo", "nick", "owner/lora", "owner/cold"])
def test_one_model(several: Running, prefix: str, name: str) -> None:
    assert several.client.get(f"{prefix}/models/{name}").json() == card(name)


@pytest.mark.parametrize("name", ["nope", "far", "far-lora", "adrift", "owner", "x" * 200])
def test_unknown_model(several: Running, name: str) -> None:
    response = several.client.get(f"/v1/models/{name}")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (
        404,
        "invalid_request_error",
        "model",
    )
    assert name[:64] in error["message"]
    assert len(error["message"]) < 120


def test_facts(changing: Running, tmp_path: Path) -> None:
    assert changing.chat().status_code == 200
    response = changing.client.get("/v1/model/info")
    ready, cold = response.json()["data"]
    assert ready == {
        "model_name": "demo",
        "litellm_params": {},
        "model_info": {
            "max_model_len": 512,
            "quantization": None,
            "state": "ready",
            "reason": None,
            "license": "MIT",
            "sampling_defaults": {},
            "task": "generate",
            "loras": ["owner/lora"],
        },
    }
    assert (cold["model_name"], cold["model_info"]["state"]) == ("owner/cold", "cold")
    assert str(tmp_path) not in response.text
    assert changing.client.get("/model/info").json() == response.json()


@pytest.mark.usefixtures("no_restarts")
def test_facts_of_a_lost_engine(changing: Running) -> None:
    assert changing.chat().status_code == 200
    changing.call(changing.engine().lose)
    while changing.services.pool.slots["demo"].state == "ready":
        changing.call(lambda: None)
    info = changing.client.get("/v1/model/info").json()["data"][0]["model_info"]
    assert (info["state"], info["reason"]) == ("failed", "its engine process ended")


def test_facts_become_known_with_the_prompts(changing: Running) -> None:
    changing.client.post("/tokenize", json={"model": "owner/cold", "prompt": "a"})
    info = changing.client.get("/v1/model/info").json()["data"][1]["model_info"]
    assert info["max_model_len"] == 2048
