"""Tools as clients declare them, and what can be refused of them without the model."""

import re
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tenuto.errors import BadRequest, quoted
from tenuto.wire.bounds import Bounds
from tenuto.wire.schema import schema_allowed, schema_within

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema")


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"] = "function"
    function: NamedFunction


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field("{}", description="a JSON object, encoded")


class Call(BaseModel):
    """A call in the history, by the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def judge_tools(tools: list[Tool] | None, choice: ToolChoice | None, bounds: Bounds) -> None:
    """Errors: `BadRequest`, with `tools` or `tool_choice` to blame."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise BadRequest("a forced tool_choice needs tools.", param="tool_choice")
        return
    if len(tools) > bounds.tools:
        raise BadRequest(
            f"tools must hold at most {bounds.tools} tools, got {len(tools)}.", param="tools"
        )
    names = [tool.function.name for tool in tools]
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise BadRequest(
                "tools must have distinct names of 1 to 64 letters, digits, '_', '-' and '.'.",
                param="tools",
            )
    schemas = [tool.function.parameters or {} for tool in tools]
    if not schema_within(schemas, bounds):
        raise BadRequest(
            f"tools: all parameters together must be {schema_allowed(bounds)}.", param="tools"
        )
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise BadRequest(
            f"tool_choice must name one of the tools, got {quoted(choice.function.name)}.",
            param="tool_choice",
        )


def judge_calls(calls: list[Call], where: str) -> None:
    """Arguments in the history go to the chat template as objects. Errors: `BadRequest`."""
    for call in calls:
        try:
            arguments = msgspec.json.decode(call.function.arguments or "{}")
        except (msgspec.MsgspecError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise BadRequest(
                f"{where}.tool_calls: arguments must be a JSON object, encoded as a string.",
                param="messages",
            )
