"""Small reports, made by hand."""

from datetime import UTC, datetime
from typing import Any, get_args

from tenuto.conformance.cases import Case, Level, Way
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.facts import Facts
from tenuto.conformance.run import Cost, Outcome, Result
from tenuto.conformance.verdict import Report

WAYS: dict[str, Way] = {way: way for way in get_args(Way)}
URL = "http://server.test:8000"


def case(id: str, level: Level = "documented", way: Way | None = None) -> Case:
    return Case(
        id=id,
        way=way,
        level=level,
        source="hosted/top_k",
        quote="top_k: Number of top tokens to consider.",
        requires=f"what {id.partition('/')[2]} requires",
        needs=(),
        alone=False,
        send={"answer": {}},
        check=[{}],
    )


def exchange(text: str = "{}", status: int | None = 200, **kwargs: Any) -> Exchange:
    request = kwargs.pop("request", None) or Request("POST", "/v1/completions", {"prompt": "Hi"})
    private = {"set-cookie": "session=private", "x-served-by": "private.host"}
    headers = {"content-type": "application/json", **private}
    return Exchange(request, status, headers, text, elapsed_s=0.25, **kwargs)


def result(
    id: str,
    outcome: Outcome = "passed",
    message: str = "",
    level: Level = "documented",
    exchanges: dict[str, Exchange] | None = None,
) -> Result:
    made = case(id, level, WAYS.get(id.partition("/")[0]))
    return Result(
        made, outcome, message, {"answer": exchange()} if exchanges is None else exchanges
    )


def report(*results: Result, **kwargs: Any) -> Report:
    facts = Facts("demo", prompts={"short/chat": "Hello!", "open/chat": "Name colours."})
    given: dict[str, Any] = {
        "target": URL,
        "facts": facts,
        "results": results,
        "cost": Cost(12, 3456),
        "elapsed_s": 2.5,
        "kit_version": "0.1.0",
        "began_at": datetime(2026, 11, 22, 13, 5, tzinfo=UTC),
    }
    return Report(**given | kwargs)


def mixed() -> Report:
    """One result of each standing, and a stale entry."""
    return report(
        result("chat/works"),
        result("chat/broken", "failed", "status 500 instead of 200: oh no"),
        result("completions/broken", "failed", "there is no usage", "contract"),
        result("models/seen", "failed", "another name", "observed"),
        result("models/known", "failed", "still wrong"),
        result("models/mended"),
        result("models/rejecting", "not applicable", "the server has no rejecting model"),
        result("models/unrecorded", "not run", "the recording does not hold it"),
        result("models/unclear", "not judged", "no prompt was found that is open"),
        expected={"models/known": "vLLM cannot", "models/mended": "once was wrong"},
    )


def unclear() -> Report:
    """Nothing failed, and yet nobody can tell."""
    return report(
        result("chat/works"),
        result("models/unclear", "not judged", "no prompt was found that is open"),
    )


def fine() -> Report:
    return report(result("chat/works"), result("models/list", level="contract"))
