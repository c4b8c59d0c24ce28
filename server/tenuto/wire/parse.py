"""Bytes to a typed request. Bad input becomes one `ApiError` that names the field."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tenuto.errors import BadRequest, InvalidRequest, UnknownModel, quoted

R = TypeVar("R", bound=BaseModel)

# Where pydantic would list one complaint per member of a union.
EXPECTED = {
    "prompt": "a string, a list of strings, a list of token ids or a list of such lists",
    "input": "a string, a list of strings, a list of token ids or a list of such lists",
    "content": "a string or a list of text parts, since this model takes text only",
    "stop": "a string or a list of strings",
    "guided_json": "a JSON schema, as an object or a string",
    "chat_template_kwargs": "an object whose values are scalars",
    "tool_choice": "'none', 'auto', 'required' or an object that names a function",
}
SYNONYMS = {"max_tokens": "max_completion_tokens"}
NEVER_QUOTED = {
    "prompt",
    "input",
    "messages",
    "tools",
    "stop",
    "suffix",
    "bad_words",
    "chat_template",
    "chat_template_kwargs",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "tokens",
}


def decode(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`, without its null fields. Errors: `InvalidRequest`."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidRequest(f"Invalid JSON payload: {reason}", param="request_body") from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            "Invalid JSON payload: the request body must be an object", param="request_body"
        )
    return {name: field for name, field in value.items() if field is not None}


def parse(kind: type[R], body: Mapping[str, Any], route: str) -> R:
    """`body` as a `kind`. Errors: `InvalidRequest` (missing field), `BadRequest` (wrong type)."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _translated(error.errors(include_url=False, include_context=False), route) from None


def with_defaults(request: R, defaults: Mapping[str, Any]) -> R:
    """`request` with the values of `defaults` where it says nothing."""
    missing = {name: value for name, value in defaults.items() if not _says(request, name)}
    return request.model_copy(update=missing) if missing else request


def ignored_fields(request: BaseModel) -> list[str]:
    """Names of the fields that were sent and that nothing here acts upon."""
    return sorted(request.model_extra or ())


def _says(request: BaseModel, name: str) -> bool:
    names = type(request).model_fields.keys() & {name, SYNONYMS.get(name, name)}
    return any(getattr(request, field) is not None for field in names)


def _translated(details: list[ErrorDetails], route: str) -> InvalidRequest | BadRequest:
    for detail in details:
        if detail["type"] == "missing" and len(detail["loc"]) == 1:
            return _missing(str(detail["loc"][0]), route)
    detail = details[0]
    param = str(detail["loc"][0])
    if param == "model":
        return UnknownModel(route, detail["input"])
    return BadRequest(f"{_path(detail)} {_complaint(detail, param)}", param=param)


def _missing(name: str, route: str) -> InvalidRequest:
    if name == "model":
        return UnknownModel(route, None)
    return InvalidRequest(f"{route}: Missing required parameter: '{name}'.", param=name)


def _named(detail: ErrorDetails) -> list[str | int]:
    """The location up to the first field that `EXPECTED` describes as a whole."""
    named: list[str | int] = []
    for part in detail["loc"]:
        named.append(part)
        if part in EXPECTED:
            break
    return named


def _path(detail: ErrorDetails) -> str:
    first, *rest = _named(detail)
    parts = (f"[{part}]" if isinstance(part, int) else f".{quoted(part)}" for part in rest)
    return f"{first}{''.join(parts)}"


def _complaint(detail: ErrorDetails, param: str) -> str:
    expected = EXPECTED.get(str(_named(detail)[-1]))
    if expected:
        return f"must be {expected}."
    reason = detail["msg"].removeprefix("Input ")
    got = "" if param in NEVER_QUOTED else f", got {quoted(detail['input'])}"
    return f"{reason}{got}."
