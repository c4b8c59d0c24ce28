"""A model and its LoRAs on one engine: each name answers as itself, also side by side."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS, HELLO
from tests.live.made import EMBEDDER, ONE, OTHER, UNCHANGED
from tests.live.ways import CHAT, CHAT_STREAMED, COMPLETIONS, Way, each_way

pytestmark = pytest.mark.live

NAMES = [MODEL, ONE, OTHER, UNCHANGED]


def text_of(server: LiveServer, model: str, way: Way = CHAT, **fields: Any) -> str:
    fields = {"temperature": 0, "max_tokens": 24, **fields}
    return way.ask(server, HELLO, model=model, **fields).only.text


@pytest.fixture(scope="module")
def alone(extended: LiveServer) -> dict[str, str]:
    """What each says to a greeting when nobody else asks."""
    return {model: text_of(extended, model) for model in NAMES}


def test_each_has_a_text_of_its_own(alone: dict[str, str]) -> None:
    assert alone[MODEL]
    assert ANSWERS[HELLO].startswith(alone[MODEL])
    assert len({alone[model] for model in (MODEL, ONE, OTHER)}) == 3
    # An adapter of zeros goes the same way through the engine, and changes nothing.
    assert alone[UNCHANGED] == alone[MODEL]


@pytest.mark.parametrize("way", [CHAT, CHAT_STREAMED], ids=str)
def test_side_by_side_each_keeps_its_text(
    extended: LiveServer, alone: dict[str, str], way: Way
) -> None:
    asked = NAMES * 4
    with ThreadPoolExecutor(len(asked)) as together:
        said = list(together.map(lambda model: text_of(extended, model, way), asked))
    assert said == [alone[model] for model in asked]


@each_way
def test_on_every_way(extended: LiveServer, way: Way) -> None:
    base, one, unchanged = (text_of(extended, model, way) for model in (MODEL, ONE, UNCHANGED))
    assert base == unchanged != one


def test_a_constraint_is_verified_off_the_loop_for_a_lora_too(extended: LiveServer) -> None:
    colour = {"guided_choice": ["red", "blue"]}
    assert text_of(extended, ONE, COMPLETIONS, **colour) in ("red", "blue")


def test_the_list_and_the_echoed_name(extended: LiveServer) -> None:
    listed = extended.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == [*NAMES, EMBEDDER]
    info, _ = extended.client.get("/v1/model/info").json()["data"]
    assert info["model_info"]["loras"] == [ONE, OTHER, UNCHANGED]
    answer = extended.chat(COLOURS, model=OTHER, max_tokens=4).json()
    assert answer["model"] == OTHER


def test_the_count_is_the_usage(extended: LiveServer) -> None:
    body = {"model": OTHER, "messages": [{"role": "user", "content": COLOURS}]}
    counted = extended.client.post("/utils/token_counter", json=body).json()
    usage = extended.chat(COLOURS, model=OTHER, max_tokens=1).json()["usage"]
    assert (counted["total_tokens"], counted["model_used"]) == (usage["prompt_tokens"], OTHER)
