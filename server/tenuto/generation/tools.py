"""The JSON schemas of forced tool calls (`required`, or a named function)."""

from collections.abc import Sequence
from typing import Any

from tenuto.errors import BadRequest
from tenuto.wire.tools import Tool

DEFINITIONS = {"$defs", "definitions"}


def named_schema(tools: Sequence[Tool], name: str) -> dict[str, Any]:
    """The parameters of the one function that must be called."""
    parameters = next(tool.function.parameters for tool in tools if tool.function.name == name)
    return _object_schema(parameters)


def required_schema(tools: Sequence[Tool], parallel: bool) -> dict[str, Any]:
    """An array of calls: `[{"name": …, "parameters": …}]`, as vLLM constrains it.

    Definitions move to the root, where references expect them. Errors: `BadRequest`.
    """
    definitions: dict[str, dict[str, Any]] = {}
    options = []
    for tool in tools:
        parameters = _object_schema(tool.function.parameters)
        for key in DEFINITIONS & parameters.keys():
            _collect(definitions.setdefault(key, {}), parameters.pop(key))
        options.append(
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": [tool.function.name]},
                    "parameters": parameters,
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": options}}
    if not parallel:
        schema["maxItems"] = 1
    return schema | definitions


def _collect(definitions: dict[str, Any], found: Any) -> None:
    named = found if isinstance(found, dict) else {}
    if any(definitions.get(name, value) != value for name, value in named.items()):
        raise BadRequest(
            "tools must not define the same $defs name in different ways.", param="tools"
        )
    definitions |= named


def _object_schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments are an object, whatever the tool's schema says of their type."""
    return {**(parameters or {"properties": {}, "additionalProperties": False}), "type": "object"}
