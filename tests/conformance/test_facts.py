"""What is learnt of a server: which prompts suit its model, its context, two of its tokens."""

import json
import math
from typing import Any

import pytest

from tenuto.conformance.answer import folded
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.facts import (
    MIN_GAP_NATS,
    MIN_SHORT_TOKENS,
    SUITS,
    USUAL_IDS,
    Facts,
    discover,
    is_echoing,
    is_open,
    is_short,
    stop_in,
)

ASKED = Request("POST", "/v1/completions", {})


def answer(text: str, *likelihoods: float, tokens: int = 1) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "text": text}
    if likelihoods:
        top = {str(number): value for number, value in enumerate(likelihoods)}
        choice["logprobs"] = {"tokens": ["0"], "token_logprobs": [-1], "top_logprobs": [top]}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


def suits(name: str, prompt: str, body: dict[str, Any]) -> bool:
    return SUITS[name](prompt, folded(Exchange(ASKED, 200, {}, json.dumps(body))))


HALF = math.log(0.5)


@pytest.mark.parametrize(
    ("likelihoods", "is_so"),
    [
        ((HALF, HALF - MIN_GAP_NATS - 0.01), True),
        ((HALF, HALF - MIN_GAP_NATS + 0.01), False),
        ((HALF, HALF), False),
        ((math.log(0.8), math.log(0.1)), False),
        # In whichever order they are shown.
        ((math.log(0.1), HALF), True),
    ],
)
def test_open_is_uncertain_and_no_tie(likelihoods: tuple[float, ...], is_so: bool) -> None:
    assert suits("open", "x", answer("a", *likelihoods)) == is_so
    assert SUITS["open"] is is_open


@pytest.mark.parametrize(
    ("text", "likelihoods", "is_so"),
    [
        (" ha", (-0.1, -3), True),
        (" ha", (-0.6, -0.9), False),
        (" ha", (), True),
        (" ho", (-0.1, -3), False),
        ("  ", (-0.1, -3), False),
    ],
)
def test_echoing_says_what_was_asked(
    text: str, likelihoods: tuple[float, ...], is_so: bool
) -> None:
    assert suits("echoing", "ha ha", answer(text, *likelihoods)) == is_so
    assert SUITS["echoing"] is is_echoing


@pytest.mark.parametrize(
    ("text", "tokens", "is_so"),
    [
        ("Blue and wide.", MIN_SHORT_TOKENS, True),
        ("Blue and wide.", 199, True),
        ("Blue and wide.", 200, False),
        ("Blue and wide.", MIN_SHORT_TOKENS - 1, False),
        (" Blueandwide. ", MIN_SHORT_TOKENS, False),
        ("", MIN_SHORT_TOKENS, False),
    ],
)
def test_short_ends_by_itself_after_some_words(text: str, tokens: int, is_so: bool) -> None:
    assert suits("short", "x", answer(text, tokens=tokens)) == is_so
    assert SUITS["short"] is is_short


@pytest.mark.parametrize("text", ["one two three four", "one two", "a b", " x"])
def test_a_stop_text_is_in_the_middle(text: str) -> None:
    stop = stop_in(folded(Exchange(ASKED, 200, {}, json.dumps(answer(text)))))
    assert stop
    assert text.find(stop) > 0


def test_names_are_filled_in() -> None:
    facts = Facts("m", ids=(7, 8), prompts={"stop/chat": "red"})
    assert facts.fill("{model} {id_a} {id_b} {stop} {other}", "chat") == "m 7 8 red {other}"
    assert facts.fill("{stop}", "completions") == ""
    # What was filled in is not filled again.
    assert Facts("{id_a}").fill("{model}") == "{id_a}"


async def learnt(answers: dict[str, Any], names: tuple[str, ...] = (), **given: str) -> Facts:
    async def send(request: Request) -> Exchange:
        found = answers.get(request.path, {"error": {}})
        text = found if isinstance(found, str) else json.dumps(found)
        return Exchange(request, 200 if request.path in answers else 404, {}, text)

    return await discover(send, await send(Request("GET", "/v1/models")), names, given)


MODELS = {"/v1/models": {"data": [{"id": "m"}, {"id": "n", "max_model_len": 5}]}}


@pytest.mark.parametrize(
    ("more", "context"),
    [
        ({}, None),
        ({"/v1/models": {"data": [{"id": "m", "max_model_len": 4096}]}}, 4096),
        (
            {
                "/v1/model/info": {
                    "data": [{"model_name": "m", "model_info": {"max_input_tokens": 2048}}]
                }
            },
            2048,
        ),
        ({"/v1/model/info": {"data": [{"model_name": "m", "model_info": None}]}}, None),
        ({"/v1/model/info": {"data": [{"model_name": "m", "model_info": {}}]}}, None),
        ({"/v1/model/info": "<html>"}, None),
    ],
)
async def test_the_context_is_what_the_server_says(
    more: dict[str, Any], context: int | None
) -> None:
    facts = await learnt(MODELS | more)
    assert (facts.model, facts.context) == ("m", context)
    assert facts.has("context") == (context is not None)


TOKENIZE, COMPLETE = "/tokenize", "/v1/completions"


@pytest.mark.parametrize(
    ("answers", "ids"),
    [
        ({TOKENIZE: {"tokens": [1, 30, 31, 32]}}, (30, 31)),
        ({TOKENIZE: {"tokens": [1, 30, 30, 32]}}, (30, 32)),
        ({COMPLETE: {"choices": [{"token_ids": [1, 40, 41]}]}}, (40, 41)),
        ({TOKENIZE: {"tokens": [1]}, COMPLETE: {"choices": [{"token_ids": [1, 2, 3]}]}}, (2, 3)),
        ({TOKENIZE: {"tokens": ["a", "b", "c"]}, COMPLETE: {"choices": [{}]}}, USUAL_IDS),
        ({TOKENIZE: "no", COMPLETE: []}, USUAL_IDS),
        ({}, USUAL_IDS),
    ],
)
async def test_token_ids_are_of_an_ordinary_text(
    answers: dict[str, Any], ids: tuple[int, int]
) -> None:
    assert (await learnt(MODELS | answers)).ids == ids


async def test_prompts_are_those_that_suit() -> None:
    names = ("short/completions", "open/completions", "open/chat", "any/chat")
    short = answer("It is blue and very wide.", tokens=9)
    found = (await learnt(MODELS | {COMPLETE: short}, names)).prompts
    assert found == {"short/completions": "Hello!", "stop/completions": "e and v"}
    found = (await learnt(MODELS | {COMPLETE: short}, names, short="Sky?")).prompts
    assert found["short/completions"] == "Sky?"
