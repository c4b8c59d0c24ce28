"""Tool calls: chosen by the model and found by its parser, or forced and then enforced."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from openai.lib import pydantic_function_tool
from pydantic import BaseModel

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import KNOWLEDGE
from tests.live.ways import CHAT, chunks_of

pytestmark = pytest.mark.live

[TASK] = KNOWLEDGE["with_tools"]
WEATHER = [{"role": "user", "content": TASK["question"]}]
CALL = json.loads(TASK["call"])
TOOLS = KNOWLEDGE["tools"]
CITIES = {"enum": ["Paris", "Rome", "Oslo"]}
PLAN = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/City"},
        "days": {"type": "integer", "minimum": 1, "maximum": 5},
        "by": {"enum": ["train", "bus"]},
    },
    "required": ["city", "days", "by"],
    "additionalProperties": False,
    "$defs": {"City": CITIES},
}
SWITCH = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"plan_trip": PLAN, "switch": SWITCH}
STRICT_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
BROKEN = {"properties": {"a": {"type": 5}}}
RANDOM: dict[str, Any] = {"temperature": 1, "seed": 3}
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def choices(server: LiveServer, **fields: Any) -> list[dict[str, Any]]:
    """Every choice with its message, whether it was streamed or not."""
    body = {"model": MODEL, "messages": WEATHER, "tools": TOOLS, "max_tokens": 400, **fields}
    response = server.client.post(CHAT.path, json=body)
    assert response.status_code == 200, response.text
    if not fields.get("stream"):
        found: list[dict[str, Any]] = response.json()["choices"]
        return found
    parts = [choice for chunk in chunks_of(response) for choice in chunk["choices"]]
    indices = sorted({part["index"] for part in parts})
    return [whole([part for part in parts if part["index"] == index]) for index in indices]


def whole(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One choice's chunks, added up as clients do."""
    content = "".join(part["delta"].get("content") or "" for part in parts)
    calls: list[dict[str, Any]] = []
    for piece in (piece for part in parts for piece in part["delta"].get("tool_calls", ())):
        if piece["index"] == len(calls):
            assert {"id", "type"} <= piece.keys()
            calls.append({**piece, "function": {"arguments": "", **piece["function"]}})
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    message = {"content": content or None, "tool_calls": calls}
    return {**parts[-1], "message": message}


def called(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and decoded arguments of each call."""
    calls = choice["message"].get("tool_calls") or []
    assert all(call["type"] == "function" for call in calls)
    ids = [call["id"] for call in calls]
    assert all(ids)
    assert len({*ids}) == len(ids)
    functions = [call["function"] for call in calls]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def assert_valid(calls: list[tuple[str, Any]]) -> None:
    assert calls
    for name, arguments in calls:
        Draft202012Validator(SCHEMAS[name]).validate(arguments)


@streamed_or_not
@pytest.mark.parametrize("choice", [None, "auto"])
@pytest.mark.parametrize("parallel", [None, False])
def test_the_model_calls_of_its_own_accord(
    parsing: LiveServer, stream: bool, choice: str | None, parallel: bool | None
) -> None:
    [answer] = choices(parsing, stream=stream, tool_choice=choice, parallel_tool_calls=parallel)
    assert called(answer) == [(CALL["name"], CALL["parameters"])]
    assert answer["message"]["content"] is None
    assert answer["finish_reason"] == "tool_calls"


@streamed_or_not
def test_every_choice_has_calls_of_its_own(parsing: LiveServer, stream: bool) -> None:
    answers = choices(parsing, stream=stream, n=2, temperature=0.1)
    assert [called(answer) for answer in answers] == [[(CALL["name"], CALL["parameters"])]] * 2
    ids = {answer["message"]["tool_calls"][0]["id"] for answer in answers}
    assert len(ids) == 2


def test_a_ranked_stream_has_the_call(parsing: LiveServer) -> None:
    """All of its text comes at once."""
    [answer] = choices(parsing, stream=True, best_of=2, temperature=0.1)
    assert called(answer) == [(CALL["name"], CALL["parameters"])]
    assert answer["finish_reason"] == "tool_calls"


@streamed_or_not
def test_none_leaves_the_text_alone(parsing: LiveServer, stream: bool) -> None:
    [answer] = choices(parsing, stream=stream, tool_choice="none")
    assert answer["message"]["content"] == TASK["call"]
    assert not called(answer)
    assert answer["finish_reason"] == "stop"


@streamed_or_not
def test_text_is_no_call(parsing: LiveServer, stream: bool) -> None:
    [answer] = choices(parsing, stream=stream, messages=after_the_call())
    assert answer["message"]["content"] == TASK["answer"]
    assert not called(answer)
    assert answer["finish_reason"] == "stop"


@streamed_or_not
@pytest.mark.parametrize("fields", [{}, {"n": 2, **RANDOM}], ids=["greedy", "random"])
@pytest.mark.parametrize("parallel", [None, False])
def test_required(
    parsing: LiveServer, stream: bool, fields: dict[str, Any], parallel: bool | None
) -> None:
    forced = {"tool_choice": "required", "tools": STRICT_TOOLS, "parallel_tool_calls": parallel}
    for answer in choices(parsing, stream=stream, **forced, **fields):
        calls = called(answer)
        assert_valid(calls)
        assert answer["message"]["content"] is None
        # A model at random may call until its tokens are spent.
        endless = parallel is None and answer["finish_reason"] == "length"
        assert endless or answer["finish_reason"] == "tool_calls"
        assert parallel is None or len(calls) == 1


@streamed_or_not
@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("fields", [{}, {"n": 2, **RANDOM}], ids=["greedy", "random"])
def test_named(parsing: LiveServer, stream: bool, name: str, fields: dict[str, Any]) -> None:
    forced = {"tool_choice": named(name), "tools": STRICT_TOOLS}
    for answer in choices(parsing, stream=stream, **forced, **fields):
        calls = called(answer)
        assert [called_name for called_name, _ in calls] == [name]
        assert_valid(calls)
        assert answer["finish_reason"] == "stop"
        assert answer["message"]["content"] is None


@pytest.mark.parametrize("choice", ["auto", "none", "required", named("get_weather")], ids=str)
def test_a_stream_adds_up_to_the_answer(parsing: LiveServer, choice: Any) -> None:
    answers = [choices(parsing, stream=stream, tool_choice=choice)[0] for stream in (False, True)]
    contents, calls, finishes = zip(
        *((a["message"]["content"], functions(a), a["finish_reason"]) for a in answers),
        strict=True,
    )
    assert contents[0] == contents[1]
    assert calls[0] == calls[1]
    assert finishes[0] == finishes[1]


@streamed_or_not
def test_a_call_that_was_cut_off_is_no_call(parsing: LiveServer, stream: bool) -> None:
    cut = {"tool_choice": "required", "max_tokens": 8}
    [answer] = choices(parsing, stream=stream, **cut)
    assert not called(answer)
    assert answer["finish_reason"] == "length"


@pytest.mark.parametrize("choice", ["required", named("get_weather"), "none"], ids=str)
def test_a_model_without_a_parser_can_be_forced(live: LiveServer, choice: Any) -> None:
    [answer] = choices(live, tool_choice=choice, temperature=0)
    assert [name for name, _ in called(answer)] == ["get_weather"] * (choice != "none")


@pytest.mark.parametrize("choice", [None, "auto"])
def test_a_model_without_a_parser_calls_nothing_by_itself(live: LiveServer, choice: Any) -> None:
    response = refused(live, tool_choice=choice)
    assert response.json()["error"]["param"] == "tools"
    assert "tool_parser" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
        ({"tools": [{"function": {"name": "f", "parameters": BROKEN}}]}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages"),
    ],
)
def test_refused(parsing: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = refused(parsing, **{"tool_choice": "required", **fields})
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("arguments", ["", "{}"])
def test_earlier_calls_may_have_no_arguments(parsing: LiveServer, arguments: str) -> None:
    messages = after_the_call()
    messages[1]["tool_calls"][0]["function"]["arguments"] = arguments
    assert choices(parsing, messages=messages)


def test_tools_are_counted(parsing: LiveServer) -> None:
    for messages in (WEATHER, after_the_call()):
        body = {"model": MODEL, "messages": messages, "tools": TOOLS}
        usage = parsing.client.post(CHAT.path, json=body).json()["usage"]
        counted = parsing.client.post("/utils/token_counter", json=body).json()
        assert counted["total_tokens"] == usage["prompt_tokens"]
        tokens = parsing.client.post("/tokenize", json=body).json()
        assert tokens["count"] == usage["prompt_tokens"]


class Weather(BaseModel):
    """For the client's own helpers."""

    city: str


@pytest.fixture(scope="module")
def client(parsing: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{parsing.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_client_calls_and_answers(client: openai.OpenAI) -> None:
    """The loop of every agent: a call, its result, the answer."""
    messages: list[Any] = [*WEATHER]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    message = answer.choices[0].message
    assert message.tool_calls is not None
    [call] = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": TASK["result"]}
    messages += [message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == TASK["answer"]


@pytest.mark.parametrize("choice", ["auto", "required", named("get_weather")], ids=str)
def test_the_openai_clients_stream_helper(client: openai.OpenAI, choice: Any) -> None:
    messages: list[Any] = [*WEATHER]
    with client.chat.completions.stream(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=100
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    [done] = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert done.name == "get_weather"
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == done.arguments


def test_the_openai_client_parses_arguments(client: openai.OpenAI) -> None:
    messages: list[Any] = [*WEATHER]
    tool = pydantic_function_tool(Weather, name="get_weather")
    completion = client.chat.completions.parse(
        model=MODEL, messages=messages, tools=[tool], tool_choice="required"
    )
    [call] = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


def after_the_call() -> list[Any]:
    function = {"name": CALL["name"], "arguments": json.dumps(CALL["parameters"])}
    call = {"id": "call_1", "type": "function", "function": function}
    return [
        *WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": TASK["result"]},
    ]


def functions(answer: dict[str, Any]) -> list[Any]:
    return [call["function"] for call in answer["message"].get("tool_calls") or []]


def refused(server: LiveServer, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": WEATHER, "tools": TOOLS, **fields}
    response = server.client.post(CHAT.path, json=body)
    assert response.status_code == 400, response.text
    return response
