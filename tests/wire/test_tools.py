"""Tools, and calls in the history, as far as they are refused without the model."""

import json
from typing import Any

import pytest

from tenuto.wire.bounds import Bounds
from tests.building import refusal, refused

SECRET = "my-own-secret"
F = {"type": "function", "function": {"name": "f"}}
PATTERN = {"type": "string", "pattern": "^a$"}


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def history(*calls: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [*calls]}]


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("choice", ["none", "auto", "required", named("f"), None])
def test_choices(choice: Any) -> None:
    assert refusal("chat", tools=[F, tool("g.h-i_1")], tool_choice=choice) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F], "tool_choice": named("g")}, "tool_choice"),
        ({"tools": [F], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [F], "tool_choice": {"type": "allowed_tools", "tools": [F]}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("f")}, "tool_choice"),
        ({"tools": [F, F]}, "tools"),
        ({"tools": [tool("")]}, "tools"),
        ({"tools": [tool("a b")]}, "tools"),
        ({"tools": [tool("x" * 65)]}, "tools"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"function": {"name": "f", "parameters": "none"}}]}, "tools"),
        ({"tools": [tool(str(i)) for i in range(129)]}, "tools"),
        ({"tools": [tool(text=SECRET * 6_000)]}, "tools"),
        ({"tools": [tool(properties={str(i): PATTERN for i in range(257)})]}, "tools"),
        ({"tools": [F], "detokenize": False}, "detokenize"),
    ],
)
def test_refused(fields: dict[str, Any], param: str) -> None:
    error = refused("chat", **fields)
    assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
    assert SECRET not in error.message


def test_bounds_cover_all_tools_together() -> None:
    two = [tool("a", properties={"x": PATTERN}), tool("b", patternProperties={"^b": {}})]
    assert refusal("chat", Bounds(schema_patterns=2), tools=two) is None
    assert refused("chat", Bounds(schema_patterns=1), tools=two).param == "tools"
    assert refused("chat", Bounds(tools=1), tools=two).param == "tools"


@pytest.mark.parametrize("depth", [100, 800, 900, 950, 980, 5000])
def test_deep_parameters_are_judged_or_refused(depth: int) -> None:
    error = refusal("chat", tools=[tool(**nested(depth))], tool_choice="required")
    assert error is None or error.param == "tools"
    assert error is not None or depth < 5000


@pytest.mark.parametrize("arguments", ["{}", '{"a": [1, {"b": null}]}', ""])
def test_calls_in_the_history(arguments: str) -> None:
    assert refusal("chat", messages=history(call(arguments))) is None


@pytest.mark.parametrize(
    "calls",
    [
        [call(SECRET)],
        [call("[1]")],
        [call("{}"), call('{"a": ')],
        [call({"a": SECRET})],
        [call("[" * 5000)],
        [{"function": {"arguments": "{}"}}],
        [SECRET],
        SECRET,
    ],
)
def test_broken_calls_in_the_history(calls: Any) -> None:
    messages = history(*calls) if isinstance(calls, list) else history()
    if isinstance(calls, str):
        messages[1]["tool_calls"] = calls
    error = refused("chat", messages=messages)
    assert (error.status, error.param) == (400, "messages")
    assert SECRET not in error.message


def test_a_result_needs_content() -> None:
    result = {"role": "tool", "tool_call_id": "1"}
    assert refused("chat", messages=[*history(call("{}")), result]).param == "messages"
    assert refusal("chat", messages=[*history(call("{}")), {**result, "content": ""}]) is None


@pytest.mark.parametrize(
    "constraint",
    [
        {"guided_regex": SECRET},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": [SECRET]}},
    ],
)
@pytest.mark.parametrize("choice", ["required", named("f")])
def test_a_forced_choice_and_a_constraint(constraint: dict[str, Any], choice: Any) -> None:
    error = refused("chat", tools=[F], tool_choice=choice, **constraint)
    assert (error.status, error.param) == (400, *constraint)
    assert SECRET not in json.dumps(error.message)
    assert refusal("chat", tools=[F], tool_choice="auto", **constraint) is None
