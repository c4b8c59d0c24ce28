"""The report as data: for machines, and what each result counts as for the other reports."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from tenuto.conformance.cases import LEVELS
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.report.curl import body_of, curl, cut
from tenuto.conformance.run import Result
from tenuto.conformance.verdict import Report

Standing = Literal[
    "passed", "failed", "differs", "expected", "not judged", "not applicable", "not run"
]
STANDINGS: tuple[Standing, ...] = (
    "passed",
    "failed",
    "differs",
    "expected",
    "not applicable",
    "not judged",
    "not run",
)
MAX_TEXT = 4_000
# Those that a failure can be about. The rest says more of the host than of the answer, and a
# session of whoever ran the kit has no place in a report that is handed around.
SHOWN_HEADERS = (
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "location",
    "allow",
    "retry-after",
    "www-authenticate",
    "cache-control",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "x-request-id",
)


def to_json(report: Report) -> str:
    # Escaped, since an answer may hold halves of characters that no file can be written with.
    return json.dumps(_data(report), indent=2, ensure_ascii=True) + "\n"


def standing(result: Result, report: Report) -> Standing:
    """What a result means for the verdict: only `failed` breaks it, `differs` is an `observed`
    case that failed."""
    if result.outcome != "failed":
        return result.outcome
    if result.case.id in report.expected:
        return "expected"
    return "failed" if result.case.is_must else "differs"


def tally(results: Iterable[Result], report: Report) -> dict[Standing, int]:
    """How many of each, in one order."""
    found = Counter(standing(result, report) for result in results)
    return {name: found[name] for name in STANDINGS}


def reasons(results: Iterable[Result]) -> dict[str, int]:
    """Why cases were not tried, and how many of them for each reason."""
    untried = [r for r in results if r.outcome in ("not judged", "not applicable", "not run")]
    return dict(Counter(f"{r.outcome}: {r.message}" for r in untried))


def elapsed_s(result: Result) -> float:
    return sum(exchange.elapsed_s for exchange in result.exchanges.values())


def _data(report: Report) -> dict[str, Any]:
    return {
        "kit_version": report.kit_version,
        "target": report.target,
        "began_at": report.began_at.isoformat(),
        "elapsed_s": round(report.elapsed_s, 3),
        "conforms": report.conforms,
        "verdict": report.verdict,
        "facts": _facts(report),
        "cost": {"max_requests": report.cost.requests, "max_tokens": report.cost.tokens},
        "rate_limited": report.rate_limited,
        "counts": {"cases": len(report.results), **_counts(report.results, report)},
        "levels": {
            level: _counts([r for r in report.results if r.case.level == level], report)
            for level in LEVELS
        },
        "stale": report.stale,
        "cases": [_case(result, report) for result in report.results],
    }


def _facts(report: Report) -> dict[str, Any]:
    facts = report.facts
    return {
        "model": facts.model,
        "rejecting_model": facts.rejecting_model,
        "running_metric": facts.running_metric,
        "key": facts.key,
        "limited_key": facts.limited_key,
        "limit": facts.limit,
        "prompts": dict(sorted(facts.prompts.items())),
    }


def _counts(results: Iterable[Result], report: Report) -> dict[str, int]:
    return {name.replace(" ", "_"): count for name, count in tally(results, report).items()}


def _case(result: Result, report: Report) -> dict[str, Any]:
    case = result.case
    row: dict[str, Any] = {
        "id": case.id,
        "group": case.group,
        "way": case.way,
        "level": case.level,
        "source": case.source,
        "quote": case.quote,
        "requires": case.requires,
        "outcome": result.outcome,
        "message": result.message,
        "expected": report.expected.get(case.id),
        "elapsed_s": round(elapsed_s(result), 3),
    }
    if result.outcome == "failed":
        row["exchanges"] = [
            {"name": name, "request": _request(e.request, report.target), "answer": _answer(e)}
            for name, e in result.exchanges.items()
        ]
    return row


def _request(request: Request, target: str) -> dict[str, Any]:
    body = body_of(request)
    return {
        "method": request.method,
        "path": request.path,
        "auth": request.auth,
        "headers": dict(sorted(request.headers.items())),
        "body": None if body is None else cut(body, MAX_TEXT),
        "curl": curl(request, target),
    }


def shown_headers(exchange: Exchange) -> dict[str, str]:
    return {name: exchange.headers[name] for name in SHOWN_HEADERS if name in exchange.headers}


def _answer(exchange: Exchange) -> dict[str, Any]:
    return {
        "status": exchange.status,
        "headers": shown_headers(exchange),
        "text": cut(exchange.text, MAX_TEXT),
        "failure": exchange.failure,
        "left": exchange.left,
        "elapsed_s": round(exchange.elapsed_s, 3),
    }
