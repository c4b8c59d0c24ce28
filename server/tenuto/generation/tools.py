"""The JSON schemas of forced tool calls (`required`, or a named function)."""

from collections.abc import Sequence
from typing import Any

from tenuto.wire.tools import Tool


def named_schema(tools: Sequence[Tool], name: str) -> dict[str, Any]:
    """The parameters of the one function that must be called."""
    parameters = next(tool.function.parameters for tool in tools if tool.function.name == name)
    return _object_schema(parameters)


def required_schema(tools: Sequence[Tool], parallel: bool) -> dict[str, Any]:
    """An array of calls: `[{"name": …, "parameters": …}]`, as vLLM constrains it.

    `$defs` move to the root, where references expect them.
    """
    definitions: dict[str, Any] = {}
    options = []
    for tool in tools:
        parameters = dict(_object_schema(tool.function.parameters))
        definitions |= parameters.pop("$defs", {})
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
    return schema | ({"$defs": definitions} if definitions else {})


def _object_schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    return parameters or {"type": "object", "properties": {}, "additionalProperties": False}
