"""Structured output: one constraint, whichever field it came in."""

from typing import Any

import pytest

from tenuto.errors import BadRequest
from tenuto.wire.constraint import Constrained, judged_constraint
from tests.building import BOUNDS, chat

SCHEMA = {"type": "object"}
SECRET = "my-own-secret"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"structured_outputs": {"json_object": False}}, None),
        (
            {"response_format": {"type": "json_object"}},
            Constrained("response_format", "json_object", True),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            Constrained("response_format", "json_schema", SCHEMA),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            Constrained("structured_outputs", "json_schema", SCHEMA),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            Constrained("structured_outputs", "json_object", True),
        ),
        ({"structured_outputs": {"regex": "a"}}, Constrained("structured_outputs", "regex", "a")),
        (
            {"structured_outputs": {"choice": ["a"]}},
            Constrained("structured_outputs", "choice", ["a"]),
        ),
        (
            {"structured_outputs": {"grammar": "a"}},
            Constrained("structured_outputs", "grammar", "a"),
        ),
        ({"guided_json": "{}"}, Constrained("guided_json", "json_schema", "{}")),
        ({"guided_json": SCHEMA}, Constrained("guided_json", "json_schema", SCHEMA)),
        ({"guided_regex": "a"}, Constrained("guided_regex", "regex", "a")),
        ({"guided_choice": ["a"]}, Constrained("guided_choice", "choice", ["a"])),
        ({"guided_grammar": "a"}, Constrained("guided_grammar", "grammar", "a")),
    ],
)
def test_found(fields: dict[str, Any], expected: Constrained | None) -> None:
    assert judged_constraint(chat(**fields), BOUNDS) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": SECRET}, "guided_regex"),
        ({"guided_json": {}, "guided_choice": [SECRET]}, "guided_choice"),
        ({"structured_outputs": {"regex": SECRET, "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": SECRET * 1000}}, "structured_outputs"),
        ({"guided_json": SECRET * 10_000}, "guided_json"),
        ({"guided_choice": ["é" * 40_000]}, "guided_choice"),
    ],
)
def test_refused_without_repeating_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        judged_constraint(chat(**fields), BOUNDS)
    assert caught.value.param == param
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("depth", [100, 800, 900, 950, 980, 1000, 5000])
def test_deep_schema_is_judged_or_refused(depth: int) -> None:
    """As deep as a body can be nested and still be decoded."""
    try:
        request = chat(guided_json=nested(depth))
        found = judged_constraint(request, BOUNDS)
    except BadRequest as error:
        assert error.param == "guided_json"  # noqa: PT017
    else:
        assert found is not None
        assert depth < 5000
