"""The schemas that forced tool calls are constrained to."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tenuto.errors import BadRequest
from tenuto.generation.tools import named_schema, required_schema
from tenuto.wire.tools import Tool
from tests.building import plan, sampling

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PLACE = {"type": "object", "properties": {"at": {"$ref": "#/$defs/P"}}, "$defs": {"P": CITY}}
FORCED = {"type": "function", "function": {"name": "f"}}


def tools(**parameters: Any) -> list[Tool]:
    return [
        Tool.model_validate({"function": {"name": name, "parameters": schema}})
        for name, schema in parameters.items()
    ]


def accepts(schema: dict[str, Any], value: Any) -> bool:
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(value))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "parameters": arguments}


def test_named() -> None:
    schema = named_schema(tools(f=CITY, g=PLACE), "f")
    assert accepts(schema, {"city": "Paris"})
    assert not accepts(schema, {})


@pytest.mark.parametrize("parameters", [None, {}])
def test_a_function_without_parameters(parameters: Any) -> None:
    schema = named_schema(tools(f=parameters), "f")
    assert accepts(schema, {})
    assert not accepts(schema, {"a": 1})


@pytest.mark.parametrize("parameters", [{"properties": {"a": {}}}, {"type": "string"}])
def test_arguments_are_an_object(parameters: Any) -> None:
    schema = named_schema(tools(f=parameters), "f")
    assert accepts(schema, {"a": 1})
    assert not accepts(schema, "a")


@pytest.mark.parametrize(
    ("calls", "accepted"),
    [
        ([call("f", city="Paris")], True),
        ([call("f", city="Paris"), call("g", at={"city": "Rome"}), call("f", city="Oslo")], True),
        ([], False),
        ([call("h")], False),
        ([call("f")], False),
        ([call("g", at={"town": "Rome"})], False),
        ([{"name": "f"}], False),
        ([{**call("f", city="Paris"), "more": 1}], False),
        (call("f", city="Paris"), False),
    ],
)
def test_required(calls: Any, accepted: bool) -> None:
    assert accepts(required_schema(tools(f=CITY, g=PLACE), parallel=True), calls) is accepted


def test_required_without_parallel_calls() -> None:
    schema = required_schema(tools(f=CITY), parallel=False)
    assert accepts(schema, [call("f", city="Paris")])
    assert not accepts(schema, [call("f", city="Paris"), call("f", city="Rome")])


@pytest.mark.parametrize("key", ["$defs", "definitions"])
def test_definitions_move_to_the_root(key: str) -> None:
    at = {"properties": {"at": {"$ref": f"#/{key}/P"}}, key: {"P": CITY}}
    schema = required_schema(tools(f=at, g=at), parallel=True)
    assert schema[key] == {"P": CITY}
    assert accepts(schema, [call("g", at={"city": "Rome"})])
    assert not accepts(schema, [call("g", at={})])


def test_definitions_that_differ() -> None:
    other = {"$defs": {"P": {"type": "integer"}}}
    with pytest.raises(BadRequest) as caught:
        required_schema(tools(f=PLACE, g=other), parallel=True)
    assert caught.value.param == "tools"


def test_the_tools_stay_as_they_were() -> None:
    both = tools(f=PLACE, g=PLACE)
    required_schema(both, parallel=True)
    assert all(tool.function.parameters == PLACE for tool in both)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, None),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "required"}, "array"),
        ({"tool_choice": "required", "parallel_tool_calls": False}, "array"),
        ({"tool_choice": FORCED}, "object"),
    ],
)
def test_what_the_engine_is_constrained_to(fields: dict[str, Any], kind: str | None) -> None:
    constraint = sampling("chat", tools=[FORCED], **fields).constraint
    if kind is None:
        assert constraint is None
        return
    assert constraint is not None
    assert (constraint.param, constraint.kind) == ("tools", "json_schema")
    assert constraint.value["type"] == kind
    assert ("maxItems" in constraint.value) is ("parallel_tool_calls" in fields)


@pytest.mark.parametrize(("parallel", "single"), [(None, False), (True, False), (False, True)])
def test_chosen_calls_may_be_limited_to_one(parallel: bool | None, single: bool) -> None:
    assert plan("chat", tools=[FORCED], parallel_tool_calls=parallel).single_call is single
