"""How large a JSON schema may be: engines compile schemas, some of them very slowly."""

from typing import Any

import msgspec

from tenuto.wire.bounds import Bounds


def schema_allowed(bounds: Bounds) -> str:
    return (
        f"a JSON schema of at most {bounds.schema_bytes} bytes "
        f"and {bounds.schema_patterns} patterned properties"
    )


def schema_within(schema: Any, bounds: Bounds) -> bool:
    """`schema` is decoded, or text; text that is no JSON is left to the engine to refuse."""
    try:
        text = schema.encode() if isinstance(schema, str) else msgspec.json.encode(schema)
        if len(text) > bounds.schema_bytes:
            return False
        decoded = msgspec.json.decode(text) if isinstance(schema, str) else schema
    except RecursionError:
        # Nested too deeply: the body was decoded with fewer calls on the stack.
        return False
    except msgspec.MsgspecError:
        return True
    return _patterns(decoded) <= bounds.schema_patterns


def _patterns(schema: Any) -> int:
    found = 0
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            patterned = value.get("patternProperties")
            found += isinstance(value.get("pattern"), str)
            found += len(patterned) if isinstance(patterned, dict) else 0
            rest += value.values()
    return found
