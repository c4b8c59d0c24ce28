"""Reasoning apart from the answer, and the template's arguments that steer it."""

from typing import Any

import pytest

from tests.live.conftest import MODEL, THINKER, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS, KNOWLEDGE
from tests.live.ways import CHAT, CHAT_STREAMED, COMPLETIONS, Way, chunks_of

pytestmark = pytest.mark.live

QUESTION = "Think first, is a tenuto note short?"
THOUGHT, ANSWER = ANSWERS[QUESTION].removeprefix("<think>").split("</think>")
TOOLS = KNOWLEDGE["tools"]
each_chat = pytest.mark.parametrize("way", [CHAT, CHAT_STREAMED], ids=str)


def messages(server: LiveServer, way: Way, **fields: Any) -> list[dict[str, Any]]:
    """Each choice's parts, and `finish_reason`; None where a part never came."""
    body = {"model": THINKER, **way.body(QUESTION), **fields}
    response = server.client.post(way.path, json=body)
    assert response.status_code == 200, response.text
    parts = chunks_of(response) if way.stream else [response.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    indices = sorted({choice["index"] for choice in choices})
    return [added([c for c in choices if c["index"] == index]) for index in indices]


def added(choices: list[dict[str, Any]]) -> dict[str, Any]:
    said = [choice.get("message") or choice["delta"] for choice in choices]
    names = ("content", "reasoning", "reasoning_content")
    texts = {name: "".join(part.get(name) or "" for part in said) for name in names}
    calls = [call["function"] for part in said for call in part.get("tool_calls", ())]
    arguments = "".join(call["arguments"] for call in calls)
    return {**texts, "calls": arguments, "finish_reason": choices[-1]["finish_reason"]}


@each_chat
@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "temperature": 0.01}, {"best_of": 2, "temperature": 0.01}], ids=str
)
def test_reasoning_is_apart(parsing: LiveServer, way: Way, fields: dict[str, Any]) -> None:
    answers = messages(parsing, way, **fields)
    assert len(answers) == fields.get("n", 1)
    for answer in answers:
        assert answer == {
            "content": ANSWER,
            "reasoning": THOUGHT,
            "reasoning_content": THOUGHT,
            "calls": "",
            "finish_reason": "stop",
        }


@each_chat
def test_a_model_without_a_parser_says_it_aloud(live: LiveServer, way: Way) -> None:
    [answer] = messages(live, way, model=MODEL, temperature=0)
    assert answer["content"] == ANSWERS[QUESTION]
    assert answer["reasoning"] == answer["reasoning_content"] == ""


@each_chat
def test_reasoning_that_was_cut_off(parsing: LiveServer, way: Way) -> None:
    [answer] = messages(parsing, way, max_tokens=5)
    assert answer["content"] == ""
    assert answer["reasoning"]
    assert THOUGHT.startswith(answer["reasoning"])
    assert answer["finish_reason"] == "length"


@each_chat
@pytest.mark.parametrize(
    "constraint",
    [
        {"guided_choice": ["yes", "no"]},
        {"guided_regex": "yes|no"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes"]}}}},
    ],
    ids=str,
)
def test_constraints_begin_after_the_reasoning(
    parsing: LiveServer, way: Way, constraint: dict[str, Any]
) -> None:
    [answer] = messages(parsing, way, **constraint)
    assert answer["reasoning"] == THOUGHT
    assert answer["content"] in ("yes", "no", '"yes"')


@each_chat
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_a_forced_call_comes_after_the_reasoning(
    parsing: LiveServer, way: Way, choice: Any
) -> None:
    [answer] = messages(parsing, way, tools=TOOLS, tool_choice=choice)
    assert answer["reasoning"] == THOUGHT
    assert answer["content"] == ""
    assert answer["calls"].startswith("{")


def test_texts_are_constrained_from_the_start(parsing: LiveServer) -> None:
    """They have no turns, and so no reasoning."""
    answer = COMPLETIONS.ask(parsing, QUESTION, model=THINKER, guided_choice=["yes", "no"])
    assert answer.only.text in ("yes", "no")


@each_chat
def test_reasoning_is_read_from_text(parsing: LiveServer, way: Way) -> None:
    body = {"model": THINKER, **way.body(QUESTION), "detokenize": False}
    response = parsing.client.post(way.path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "detokenize"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"chat_template_kwargs": {"colour": "red"}}, "colour=red effort= thinking="),
        ({"reasoning_effort": "low"}, "colour= effort=low thinking=True"),
        ({"reasoning_effort": "none"}, "colour= effort=none thinking=False"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            "colour= effort=high thinking=True",
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            "colour= effort=low thinking=False",
        ),
    ],
    ids=str,
)
def test_arguments_reach_the_template(
    parsing: LiveServer, fields: dict[str, Any], told: str
) -> None:
    assert f"{told}<|eot_id|>" in rendered(parsing, **fields)


def test_the_template_is_the_registrys(parsing: LiveServer) -> None:
    assert "colour=" not in rendered(parsing)
    assert rendered(parsing) == rendered(parsing, model=MODEL)
    assert "colour=" not in rendered(parsing, model=MODEL, reasoning_effort="low")


def test_defaults_of_the_registry(parsing: LiveServer, live: LiveServer) -> None:
    """The greedy answer where a request says nothing; what a request says wins."""
    greedy = ANSWERS[COLOURS]
    assert {CHAT.ask(parsing, COLOURS, seed=seed).only.text for seed in range(3)} == {greedy}
    random = {"temperature": 1.5, "seed": 5}
    assert CHAT.ask(parsing, COLOURS, **random).texts == CHAT.ask(live, COLOURS, **random).texts
    assert CHAT.ask(parsing, COLOURS, **random).texts != [greedy]
    info = parsing.client.get("/v1/model/info").json()["data"][0]["model_info"]
    assert info["sampling_defaults"] == {"temperature": 0}


def rendered(server: LiveServer, **fields: Any) -> str:
    """The prompt as the engine sees it."""
    body = {"model": THINKER, **CHAT.body("Hello!"), "max_tokens": 1, **fields}
    response = server.client.post(CHAT.path, json={**body, "return_token_ids": True})
    assert response.status_code == 200, response.text
    ids = {"model": MODEL, "tokens": response.json()["prompt_token_ids"]}
    prompt: str = server.client.post("/detokenize", json=ids).json()["prompt"]
    return prompt


def test_reasoning_that_comes_in_one_piece(parsing: LiveServer) -> None:
    """As it does for a client that reads more slowly than the engine writes."""
    way = Way("chat", stream=True)
    [answer] = messages(parsing, way, max_tokens=5, best_of=2, temperature=0.01)
    assert answer["reasoning"]
    assert THOUGHT.startswith(answer["reasoning"])
