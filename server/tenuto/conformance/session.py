"""From a target and the user's wishes to a report: what the command line calls."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tenuto import __version__
from tenuto.conformance.cases import Case, CaseError, all_cases, selected
from tenuto.conformance.exchange import Request
from tenuto.conformance.facts import Facts, discover
from tenuto.conformance.run import Cost, Result, affordable, cost_of, run_cases
from tenuto.conformance.transport import Server
from tenuto.conformance.verdict import Report, load_baseline


@dataclass(frozen=True)
class Target:
    """A server. `timeout_s` bounds each whole answer; None: what the server lists decides."""

    base_url: str
    key: str | None = None
    model: str | None = None
    rejecting_model: str | None = None
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Wishes:
    """`on_cost` hears in advance what the run may cost, `on_result` each result as it comes."""

    only: Sequence[str] = ()
    budget: Cost | None = None
    baseline: Path | None = None
    parallel: int = 4
    on_cost: Callable[[Cost, int], None] = lambda cost, num_cases: None
    on_result: Callable[[Result], None] = lambda result: None


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[tuple[Server, Facts]]:
    """The server, and what the kit learns of it. Errors: `CaseError` when nothing listens."""
    server = Server(normalised(target.base_url), target.key, target.timeout_s)
    try:
        first = await server.send(Request("GET", "/v1/models"))
        if first.failure == "cannot connect":
            raise CaseError(f"cannot connect to {server.base_url}")
        facts = await discover(
            server.send, target.model, target.rejecting_model, target.key is not None
        )
        yield server, facts
    finally:
        await server.close()


async def check(target: Target, wishes: Wishes) -> Report:
    """Runs the chosen cases against a server. Errors: `CaseError`."""
    cases = chosen(wishes.only)
    expected = load_baseline(wishes.baseline, all_cases()) if wishes.baseline else {}
    async with connected(target) as (server, facts):
        affordable_cases = affordable(cases, facts, wishes.budget) if wishes.budget else cases
        cost = cost_of(affordable_cases, facts)
        wishes.on_cost(cost, len(affordable_cases))
        began = time.monotonic()
        ran = await run_cases(affordable_cases, server, facts, wishes.parallel, wishes.on_result)
        return Report(
            target=server.base_url,
            facts=facts,
            results=with_the_rest(cases, ran),
            cost=cost,
            elapsed_s=time.monotonic() - began,
            kit_version=__version__,
            expected=expected,
            rate_limited=server.rate_limited,
        )


def chosen(only: Sequence[str]) -> list[Case]:
    cases = selected(all_cases(), only)
    if not cases:
        raise CaseError(f"no case matches {' '.join(only)}")
    return cases


def with_the_rest(cases: Sequence[Case], ran: Sequence[Result]) -> list[Result]:
    """What the budget left out is said to have been left out."""
    by_id = {result.case.id: result for result in ran}
    return [by_id.get(c.id) or Result(c, "not run", "beyond the budget") for c in cases]


def normalised(base_url: str) -> str:
    """Clients are told a base URL with or without /v1; the cases name whole paths."""
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")
