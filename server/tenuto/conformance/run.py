"""Runs cases against a server, or against a recording of one."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tenuto.conformance.building import filled, max_cost, requests_of
from tenuto.conformance.cases import LEVELS, Case
from tenuto.conformance.checks import judge, refused
from tenuto.conformance.exchange import Broken, Exchange, Request, Unsuitable
from tenuto.conformance.facts import Facts

# `not judged`: the model, or a limit of the server's, did not let the kit find out.
Outcome = Literal["passed", "failed", "not judged", "not applicable", "not run"]


class Sender(Protocol):
    """A server, or what was recorded of one."""

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange: ...

    def one_connection(self) -> "AbstractAsyncContextManager[Sender]": ...


class NotRecorded(Exception):
    """A recording does not hold this request."""


@dataclass
class Result:
    """`message` says why it did not pass."""

    case: Case
    outcome: Outcome
    message: str = ""
    exchanges: dict[str, Exchange] = field(default_factory=dict)

    @property
    def breaks(self) -> bool:
        """Whether the server does not conform by this: a must was tried and failed."""
        return self.outcome == "failed" and self.case.is_must


@dataclass(frozen=True)
class Cost:
    """An upper bound, known in advance: tokens of prompts and completions together."""

    requests: int = 0
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.requests + other.requests, self.tokens + other.tokens)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.requests - other.requests, self.tokens - other.tokens)

    def fits(self, budget: "Cost") -> bool:
        return self.requests <= budget.requests and self.tokens <= budget.tokens


def cost_of(cases: Iterable[Case], facts: Facts) -> Cost:
    """Requests that a conforming server refuses are counted, and cost no tokens."""
    costs = [
        _cost_of(request, name in refused(case), facts)
        for case in cases
        if all(map(facts.has, case.needs))
        for name, request in requests_of(case, facts).items()
    ]
    return sum(costs, Cost())


def _cost_of(request: Request, is_refused: bool, facts: Facts) -> Cost:
    """Until its limit is met, a key is let in as often as that allows."""
    tokens = max_cost(request)
    if request.until == "limited":
        limit = facts.limit or 0
        return Cost(limit + 1, limit * tokens)
    return Cost(1, 0 if is_refused else tokens)


def affordable(cases: Sequence[Case], facts: Facts, budget: Cost) -> list[Case]:
    """As many as fit: the documented ones first, and of each level the cheapest."""
    costs = {case.id: cost_of([case], facts) for case in cases}
    by_worth = sorted(
        cases, key=lambda c: (LEVELS.index(c.level), costs[c.id].tokens, costs[c.id].requests)
    )
    spent, chosen = Cost(), set()
    for case in by_worth:
        if (spent + costs[case.id]).fits(budget):
            spent += costs[case.id]
            chosen.add(case.id)
    return [case for case in cases if case.id in chosen]


async def run_cases(
    cases: Sequence[Case],
    sender: Sender,
    facts: Facts,
    parallel: int,
    report: Callable[[Result], None],
) -> list[Result]:
    """Every case's result, in the order of the cases; `report` gets each as it comes."""
    slots = asyncio.Semaphore(parallel)
    results: dict[str, Result] = {}

    async def run(case: Case) -> None:
        async with slots:
            results[case.id] = await result_of(case, sender, facts)
        report(results[case.id])

    async with asyncio.TaskGroup() as tasks:
        for case in cases:
            if not case.alone:
                tasks.create_task(run(case))
    for case in cases:
        if case.alone:
            await run(case)
    return [results[case.id] for case in cases]


async def result_of(case: Case, sender: Sender, facts: Facts) -> Result:
    missing = [need for need in case.needs if not facts.has(need)]
    if missing:
        return Result(case, "not applicable", facts.lack(missing[0]))
    absent = sorted(case.asks - facts.prompts.keys())
    if absent:
        return Result(case, "not judged", f"no prompt was found that is {absent[0]} for this model")
    exchanges: dict[str, Exchange] = {}
    try:
        await _send_all(case, sender, requests_of(case, facts), exchanges)
        judge(case.id, filled(case.check, facts, case.way), exchanges)
    except Broken as broken:
        untried = any(exchange.untried for exchange in exchanges.values())
        unclear = untried or isinstance(broken, Unsuitable)
        return Result(case, "not judged" if unclear else "failed", str(broken), exchanges)
    except NotRecorded as missing_request:
        return Result(case, "not run", str(missing_request), exchanges)
    return Result(case, "passed", exchanges=exchanges)


async def _send_all(
    case: Case, sender: Sender, requests: Mapping[str, Request], exchanges: dict[str, Exchange]
) -> None:
    """In their order. One that the client leaves goes on until another one, which it names, is
    answered."""
    leaving: dict[str, tuple[str, asyncio.Event, asyncio.Task[Exchange]]] = {}
    async with AsyncExitStack() as stack:
        if any(spec.get("http", {}).get("connection") == "one" for spec in case.send.values()):
            sender = await stack.enter_async_context(sender.one_connection())
        for name, request in requests.items():
            leave_after = case.send[name].get("http", {}).get("leave_after")
            if leave_after:
                leave = asyncio.Event()
                task = asyncio.create_task(sender.send(request, leave))
                leaving[leave_after] = (name, leave, task)
                continue
            exchanges[name] = await sender.send(request)
            if name in leaving:
                left, leave, task = leaving.pop(name)
                leave.set()
                exchanges[left] = await task
