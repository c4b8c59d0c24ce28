"""Structured output as clients ask for it: one constraint, whichever field it came in."""

from dataclasses import dataclass
from typing import Any, Literal

from tenuto.errors import BadRequest
from tenuto.wire.bounds import Bounds
from tenuto.wire.requests import GenerationRequest
from tenuto.wire.schema import schema_allowed, schema_within

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class Constrained:
    """`param` is the field to blame when `value` turns out to be invalid."""

    param: str
    kind: Kind
    value: Any


def judged_constraint(request: GenerationRequest, bounds: Bounds) -> Constrained | None:
    """The request's one constraint, within bounds. Errors: `BadRequest`."""
    asked = constrained(request)
    if asked is not None:
        _judge(asked, bounds)
    return asked


def constrained(request: GenerationRequest) -> Constrained | None:
    """The request's one constraint, of any size. Errors: `BadRequest`."""
    found = _candidates(request)
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(item.param for item in found)
        raise BadRequest(f"only one constraint is allowed, got {names}.", param=found[-1].param)
    return found[0]


def _candidates(request: GenerationRequest) -> list[Constrained]:
    found: list[Constrained] = []
    wanted = request.response_format
    if wanted is not None and wanted.type != "text":
        found.append(_from_response_format(request))
    if request.structured_outputs is not None:
        kinds: tuple[Kind, ...] = ("json_schema", "json_object", "regex", "choice", "grammar")
        for kind in kinds:
            value = getattr(request.structured_outputs, kind)
            if value is not None and value is not False:
                found.append(Constrained("structured_outputs", kind, value))
    guided: dict[str, Kind] = {
        "guided_json": "json_schema",
        "guided_regex": "regex",
        "guided_choice": "choice",
        "guided_grammar": "grammar",
    }
    for param, kind in guided.items():
        value = getattr(request, param)
        if value is not None:
            found.append(Constrained(param, kind, value))
    return found


def _from_response_format(request: GenerationRequest) -> Constrained:
    wanted = request.response_format
    assert wanted is not None
    if wanted.type == "json_object":
        return Constrained("response_format", "json_object", True)
    schema = wanted.json_schema and wanted.json_schema.json_schema
    if schema is None:
        raise BadRequest("response_format.json_schema.schema is missing.", param="response_format")
    return Constrained("response_format", "json_schema", schema)


def _judge(asked: Constrained, bounds: Bounds) -> None:
    if asked.kind == "choice":
        allowed = (
            f"1 to {bounds.choices} non-empty strings, together at most {bounds.schema_bytes} bytes"
        )
        within = 1 <= len(asked.value) <= bounds.choices and all(asked.value)
        within = within and len("".join(asked.value).encode()) <= bounds.schema_bytes
    elif asked.kind == "regex":
        allowed = f"a regex of 1 to {bounds.regex_bytes} bytes"
        within = 1 <= len(asked.value.encode()) <= bounds.regex_bytes
    elif asked.kind == "grammar":
        allowed = f"a grammar of 1 to {bounds.grammar_bytes} bytes"
        within = 1 <= len(asked.value.encode()) <= bounds.grammar_bytes
    elif asked.kind == "json_schema":
        allowed = schema_allowed(bounds)
        within = schema_within(asked.value, bounds)
    else:
        return
    if not within:
        raise BadRequest(f"{asked.param} must be {allowed}.", param=asked.param)
