"""The process that tries constraints out."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tenuto.engine.verifier import Verifier, complaint

CASES: list[tuple[str, Any, bool]] = [
    ("json_schema", {"type": "object", "properties": {"a": {"enum": ["é"]}}}, True),
    ("json_schema", '{"type": "integer"}', True),
    ("json_schema", {}, True),
    ("regex", "[a-z]+", True),
    ("grammar", 'root ::= "a" | root "b"', True),
    ("grammar", 'start: "a" | "b" start', True),
    ("json_schema", {"type": 5}, False),
    ("json_schema", "{", False),
    ("json_schema", {"$ref": "#/$defs/none"}, False),
    ("json_schema", {"allOf": [{"const": 1}, {"const": 2}]}, False),
    ("regex", "(", False),
    ("regex", "(?=a)", False),
    ("grammar", "root ::= none", False),
    ("grammar", "", False),
]


@pytest.fixture
async def verifier() -> AsyncIterator[Verifier]:
    verifier = Verifier()
    yield verifier
    await verifier.close()


def is_accepted(kind: str, value: Any) -> bool:
    try:
        return not complaint(kind, value)
    except ValueError:
        return False


@pytest.mark.parametrize(("kind", "value", "accepted"), CASES)
def test_complaints(kind: str, value: Any, accepted: bool) -> None:
    assert is_accepted(kind, value) is accepted


async def test_verdicts_come_back(verifier: Verifier) -> None:
    for _ in range(2):
        verdicts = [await verifier.accepts(kind, value) for kind, value, _ in CASES]
        assert verdicts == [accepted for _, _, accepted in CASES]


async def test_many_at_once(verifier: Verifier) -> None:
    wanted = [("regex", f"{'(' * (i % 2)}{i}") for i in range(20)]
    verdicts = await asyncio.gather(*(verifier.accepts(*item) for item in wanted))
    assert verdicts == [i % 2 == 0 for i in range(20)]


async def test_who_leaves_takes_no_ones_verdict(verifier: Verifier) -> None:
    assert await verifier.accepts("regex", "a")
    leaving = asyncio.create_task(verifier.accepts("regex", "("))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await verifier.accepts("regex", "b")
    assert not await verifier.accepts("regex", "(")


async def test_a_process_that_has_ended_is_replaced(verifier: Verifier) -> None:
    assert await verifier.accepts("regex", "a")
    assert verifier._process is not None
    verifier._process.kill()
    await verifier._process.wait()
    assert await verifier.accepts("regex", "b")


async def test_a_value_nested_too_deeply(verifier: Verifier) -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    assert not await verifier.accepts("json_schema", schema)
