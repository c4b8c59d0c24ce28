"""What the toy engine says under a constraint: one text that meets it."""

import json
import re
from functools import cache
from typing import Any

from hypothesis import Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import characters, from_regex

from tenuto.engine.types import Constraint
from tenuto.errors import BadRequest


def canned(constraint: Constraint) -> str:
    """One short text that the constraint admits. Errors: `BadRequest`."""
    kind, value = constraint.kind, constraint.value
    try:
        if kind == "choice":
            return str(value[0])
        if kind == "json_object":
            return '{"answer": 1}'
        if kind == "json_schema":
            schema = json.loads(value) if isinstance(value, str) else value
            return json.dumps(_instance(schema, schema))
        return _matching(value) if kind == "regex" else _derived(value)
    except (KeyError, TypeError, ValueError, RecursionError, re.error, NoSuchExample):
        raise BadRequest("It is not a valid constraint.", param=constraint.param) from None


@cache
def _matching(pattern: str) -> str:
    # Without shrinking: the first example is a simple one.
    quick = settings(database=None, phases=(Phase.generate,))
    texts = from_regex(pattern, fullmatch=True, alphabet=characters(codec="ascii"))
    return find(texts, lambda text: True, settings=quick)


def _derived(grammar: str) -> str:
    """The first alternative of the root of a grammar in GBNF's or Lark's notation."""
    rule = r'^\??([\w-]+)\s*(?:::=|:)((?:[ \t]*(?:"[^"\n]*"|[\w-]+))*)'
    rules = dict(re.findall(rule, grammar, re.M))

    def text(rule: str) -> str:
        symbols = re.findall(r'"([^"]*)"|([\w-]+)', rules[rule])
        return "".join(text(name) if name else literal for literal, name in symbols)

    return text("root" if "root" in rules else "start")


def _instance(schema: Any, root: Any) -> Any:
    if schema is True or not schema:
        return "toy"
    if "$ref" in schema:
        found = root
        for key in schema["$ref"].removeprefix("#").split("/")[1:]:
            found = found[key]
        return _instance(found, root)
    for several in {"anyOf", "oneOf", "allOf"} & schema.keys():
        return _instance(schema[several][0], root)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind if isinstance(kind, str) else kind[0]
    if kind == "object":
        inner = schema.get("properties", {})
        return {n: _instance(inner.get(n), root) for n in schema.get("required", inner)}
    if kind == "array":
        return [_instance(schema.get("items"), root)] * max(1, schema.get("minItems", 1))
    if kind == "string":
        text = _matching(schema["pattern"]) if "pattern" in schema else "toy"
        return text.ljust(schema.get("minLength", 0), "!")[: schema.get("maxLength")]
    least = schema.get("minimum", 1)
    return {"integer": least, "number": least, "boolean": True, "null": None}[kind]
