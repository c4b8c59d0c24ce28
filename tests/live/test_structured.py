"""Constrained answers: what each kind of constraint allows, and what a bad one is told."""

import json
import re
from typing import Any, Literal

import openai
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import HELLO
from tests.live.ways import CHAT, Way, each_way

pytestmark = pytest.mark.live

SECRET = "mysecret"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Tom"]},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "codes": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[A-C]{3}$"},
            "maxItems": 2,
        },
    },
    "required": ["name", "age", "codes"],
    "additionalProperties": False,
}
CHOICES = ["tenuto", "staccato", "legato"]
REGEX = r"[A-F]{2}-\d{4}"
GBNF = 'root ::= "(" root ")" | "x"'
LARK = 'start: "(" start ")" | "x"'
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def is_person(text: str) -> bool:
    return bool(Draft202012Validator(SCHEMA).is_valid(json.loads(text)))


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def is_nested(text: str) -> bool:
    depth = text.count("(")
    return text == "(" * depth + "x" + ")" * depth


def is_code(text: str) -> bool:
    return bool(re.fullmatch(REGEX, text))


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "response_format-json_schema": ({"response_format": JSON_SCHEMA}, is_person),
    "structured_outputs-json": ({"structured_outputs": {"json": SCHEMA}}, is_person),
    "guided_json": ({"guided_json": SCHEMA}, is_person),
    "guided_json-text": ({"guided_json": json.dumps(SCHEMA)}, is_person),
    "structured_outputs-regex": ({"structured_outputs": {"regex": REGEX}}, is_code),
    "guided_regex": ({"guided_regex": REGEX}, is_code),
    "structured_outputs-choice": (
        {"structured_outputs": {"choice": CHOICES}},
        CHOICES.__contains__,
    ),
    "guided_choice": ({"guided_choice": CHOICES}, CHOICES.__contains__),
    "structured_outputs-grammar": ({"structured_outputs": {"grammar": GBNF}}, is_nested),
    "guided_grammar": ({"guided_grammar": GBNF}, is_nested),
    "guided_grammar-lark": ({"guided_grammar": LARK}, is_nested),
}
each_kind = pytest.mark.parametrize(("constraint", "obeyed"), KINDS.values(), ids=KINDS)


OBJECT = {
    "response_format": {"response_format": {"type": "json_object"}},
    "structured_outputs": {"structured_outputs": {"json_object": True}},
}


@each_way
@each_kind
def test_every_answer_obeys(
    live: LiveServer, way: Way, constraint: dict[str, Any], obeyed: Any
) -> None:
    answer = way.ask(live, HELLO, n=3, temperature=1, seed=4, **constraint)
    for choice in answer.choices:
        assert choice.finish_reason == "stop", choice.text
        assert obeyed(choice.text), choice.text


@each_way
@pytest.mark.parametrize("constraint", OBJECT.values(), ids=OBJECT)
def test_any_object(live: LiveServer, way: Way, constraint: dict[str, Any]) -> None:
    """It may have any length: one that was cut off is a beginning."""
    fields = {"n": 3, "temperature": 1, "seed": 4, "max_tokens": 40, **constraint}
    for choice in way.ask(live, HELLO, **fields).choices:
        assert choice.text.lstrip().startswith("{")
        assert choice.finish_reason == "length" or is_object(choice.text), choice.text


def test_constraints_of_any_backend_may_follow_each_other(live: LiveServer) -> None:
    """vLLM keeps the backend of the first constraint; these need what not every one has."""
    for schema, allowed in (
        ({"enum": ["a"]}, {"a"}),
        ({"type": "string", "pattern": "^(a|b)$", "maxLength": 1}, {"a", "b"}),
        ({"type": "integer", "multipleOf": 50, "minimum": 1, "maximum": 99}, {50}),
        ({"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, {"b"}),
    ):
        answer = CHAT.ask(live, HELLO, guided_json=schema)
        assert json.loads(answer.only.text) in allowed


BAD: dict[str, dict[str, Any]] = {
    "schema-type": {"guided_json": {"type": SECRET}},
    "schema-deep": {"guided_json": {"properties": {SECRET: {"type": 5}}}},
    "schema-reference": {"guided_json": {"$ref": f"#/$defs/{SECRET}"}},
    "schema-pattern": {"guided_json": {"type": "string", "pattern": f"({SECRET}"}},
    "schema-impossible": {"guided_json": {"allOf": [{"const": SECRET}, {"const": 1}]}},
    "schema-no-json": {"guided_json": f"{{{SECRET}"},
    "schema-remote": {"guided_json": {"$ref": f"https://localhost/{SECRET}"}},
    "format": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": SECRET}}}
    },
    "regex": {"guided_regex": f"({SECRET}"},
    "regex-lookahead": {"guided_regex": f"(?={SECRET})a"},
    "regex-backreference": {"guided_regex": f"({SECRET})\\1"},
    "regex-nul": {"structured_outputs": {"regex": f"{SECRET}\0"}},
    "regex-range": {"structured_outputs": {"regex": f"{SECRET}[z-a]"}},
    "grammar": {"guided_grammar": f"{SECRET} is no grammar"},
    "grammar-rule": {"guided_grammar": f"root ::= {SECRET}"},
    "grammar-lark": {"structured_outputs": {"grammar": f"start: {SECRET}"}},
}


@each_way
@pytest.mark.parametrize("constraint", BAD.values(), ids=BAD)
def test_a_bad_constraint_is_named_and_not_repeated(
    live: LiveServer, way: Way, constraint: dict[str, Any]
) -> None:
    [param] = constraint
    error = refused(live, way, **constraint)
    assert (error["type"], error["param"]) == ("BadRequestError", param)
    assert SECRET not in json.dumps(error)
    assert SECRET not in live.log.read_text()


@pytest.mark.parametrize(
    ("constraint", "param"),
    [
        ({"guided_regex": "a" * 2049}, "guided_regex"),
        ({"guided_choice": ["a"] * 1001}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": {"const": "a" * 65536}}, "guided_json"),
        (
            {"guided_json": {"properties": {str(i): {"pattern": "a"} for i in range(257)}}},
            "guided_json",
        ),
        (
            {"guided_json": {"patternProperties": {f"^{i}": {} for i in range(257)}}},
            "guided_json",
        ),
        ({"guided_grammar": "a" * 8193}, "guided_grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bounds(live: LiveServer, constraint: dict[str, Any], param: str) -> None:
    assert refused(live, CHAT, **constraint)["param"] == param


def test_another_parameter_keeps_its_blame(live: LiveServer) -> None:
    """vLLM judges it at the same time as the constraint."""
    error = refused(live, CHAT, guided_regex="a", stop_token_ids=[10**6])
    assert error["param"] == "stop_token_ids"


class Person(BaseModel):
    """For the client's own helper."""

    name: Literal["Ada", "Tom"]
    is_adult: bool


def test_the_openai_client_parses(api: openai.OpenAI) -> None:
    completion = api.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": HELLO}], response_format=Person
    )
    assert isinstance(completion.choices[0].message.parsed, Person)


def refused(live: LiveServer, way: Way, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, **way.body(HELLO, **fields)}
    response = live.client.post(way.path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error
