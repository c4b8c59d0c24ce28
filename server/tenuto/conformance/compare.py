"""Two servers, or a server and a recording, beside each other: what differs, and who is to blame.

A is the one that B is held against.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tenuto.conformance.cases import Case
from tenuto.conformance.differing import Difference, differences
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.facts import Facts
from tenuto.conformance.quirks import (
    KINDS,
    Expected,
    Kind,
    SideName,
    Verdict,
    all_quirks,
    quirk_of,
)
from tenuto.conformance.run import NotRecorded, Result, Sender, run_cases

# The aspect of a case that one side passes and the other fails, whatever its answers look like.
VERDICT = "verdict"
A: SideName = "A"
B: SideName = "B"


@dataclass(frozen=True)
class Side:
    """A server or a recording; `target` is its name in reports."""

    sender: Sender
    facts: Facts
    target: str


@dataclass(frozen=True)
class Terms:
    """`same_checkpoint`: both serve the same weights, so that greedy texts must be equal.
    `on_compared` hears the name of each case or request when both have answered."""

    same_checkpoint: bool = False
    expected: Sequence[Expected] = ()
    parallel: int = 4
    on_compared: Callable[[str], None] = lambda name: None


@dataclass(frozen=True)
class Found:
    """One difference of one request, or of one case."""

    request: str
    difference: Difference
    verdict: Verdict


@dataclass(frozen=True)
class Pair:
    """A request with both answers."""

    request: str
    a: Exchange
    b: Exchange


@dataclass(frozen=True)
class Comparison:
    """`names` are all requests and cases that were compared, `not_compared` says why others were
    not, and `stale` holds rows of the baseline that are no longer true."""

    a: str
    b: str
    pairs: Sequence[Pair]
    found: Sequence[Found]
    names: Sequence[str]
    not_compared: Mapping[str, str] = field(default_factory=dict)
    stale: Sequence[Expected] = ()

    @property
    def failures(self) -> list[Found]:
        """What nobody knows, and what B breaks."""
        return [f for f in self.found if not f.verdict.is_accepted]

    @property
    def conforms(self) -> bool:
        return bool(self.pairs) and not self.failures and not self.stale

    def counts(self) -> dict[Kind, int]:
        found = Counter(f.verdict.kind for f in self.found)
        return {kind: found[kind] for kind in KINDS}


async def compare_cases(cases: Sequence[Case], a: Side, b: Side, terms: Terms) -> Comparison:
    """Every request of the cases, and what the cases say of each side."""
    counts = Counter[str]()

    def report(result: Result) -> None:
        counts[result.case.id] += 1
        if counts[result.case.id] == 2:
            terms.on_compared(result.case.id)

    results_a, results_b = await asyncio.gather(
        *(run_cases(cases, s.sender, s.facts, terms.parallel, report) for s in (a, b))
    )
    pairs: list[Pair] = []
    found: list[Found] = []
    names: list[str] = []
    not_compared = {}
    for x, y in zip(results_a, results_b, strict=True):
        if why := _untried(x, y):
            not_compared[x.case.id] = why
            continue
        own = list(_pairs(x, y))
        pairs += own
        names += [x.case.id, *(pair.request for pair in own)]
        found += _found_in_case(x, y, own, terms)
    return _with_stale(Comparison(a.target, b.target, pairs, found, names, not_compared), terms)


async def compare_requests(
    requests: Mapping[str, Request], model: str, a: Side, b: Side, terms: Terms
) -> Comparison:
    """Named requests to `model`, which each side knows by its own name."""
    slots = asyncio.Semaphore(terms.parallel)
    not_compared: dict[str, str] = {}

    async def pair(name: str, request: Request) -> Pair | None:
        async with slots:
            try:
                answers = [
                    await side.sender.send(renamed(request, model, side.facts.model))
                    for side in (a, b)
                ]
            except NotRecorded as missing:
                not_compared[name] = str(missing)
                return None
        terms.on_compared(name)
        return Pair(name, *answers)

    sent = await asyncio.gather(*(pair(*item) for item in requests.items()))
    pairs = [pair for pair in sent if pair is not None]
    found = [found for pair in pairs for found in _found_in(pair, None, terms)]
    names = [pair.request for pair in pairs]
    return _with_stale(Comparison(a.target, b.target, pairs, found, names, not_compared), terms)


def renamed(request: Request, old: str, new: str) -> Request:
    """The same question to the model's other name."""
    body = request.body
    if isinstance(body, dict) and body.get("model") == old:
        body = {**body, "model": new}
    path = re.sub(rf"(?<=/){re.escape(old)}(?=[/?]|$)", lambda _: new, request.path)
    return replace(request, path=path, body=body)


def _pairs(x: Result, y: Result) -> Iterator[Pair]:
    for name, exchange in x.exchanges.items():
        if name in y.exchanges:
            yield Pair(f"{x.case.id}:{name}", exchange, y.exchanges[name])


def _untried(x: Result, y: Result) -> str | None:
    for side, result in (("A", x), ("B", y)):
        if result.outcome in ("not judged", "not applicable", "not run"):
            return f"{side}: {result.outcome}: {result.message}"
    return None


def _found_in_case(x: Result, y: Result, pairs: Sequence[Pair], terms: Terms) -> list[Found]:
    blame = _blame(x, y)
    found = [f for pair in pairs for f in _found_in(pair, blame, terms)]
    if blame is None:
        return found
    difference = Difference(VERDICT, x.outcome, y.outcome)
    return [Found(x.case.id, difference, _expected(x.case.id, difference, terms) or blame), *found]


def _blame(x: Result, y: Result) -> Verdict | None:
    """On the side that alone fails the case."""
    if x.outcome == y.outcome:
        return None
    failed, side = (x, A) if x.outcome == "failed" else (y, B)
    return Verdict("breaks", failed.message, failed.case.level, failed.case.source, side)


def _found_in(pair: Pair, blame: Verdict | None, terms: Terms) -> Iterator[Found]:
    """A quirk that is known says more than that the case failed."""
    for difference in differences(pair.a, pair.b, terms.same_checkpoint):
        quirk = quirk_of(pair.request, pair.a.request, difference, all_quirks())
        verdict = (
            _expected(pair.request, difference, terms)
            or (quirk and quirk.verdict(difference))
            or blame
            or Verdict("new")
        )
        yield Found(pair.request, difference, verdict)


def _expected(name: str, difference: Difference, terms: Terms) -> Verdict | None:
    rows = (r for r in terms.expected if r.is_of(name) and r.aspect == difference.aspect)
    return next((Verdict("expected", row.why) for row in rows), None)


def _with_stale(comparison: Comparison, terms: Terms) -> Comparison:
    """A row of the baseline is stale when its request was compared and the difference is gone."""
    found = [(f.request, f.difference.aspect) for f in comparison.found]
    stale = [
        row
        for row in terms.expected
        if any(map(row.is_of, comparison.names))
        and not any(row.is_of(name) and aspect == row.aspect for name, aspect in found)
    ]
    return replace(comparison, stale=stale)
