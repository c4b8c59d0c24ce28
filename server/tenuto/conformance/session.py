"""From a target and the user's wishes to a report: what the command line calls."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from tenuto import __version__
from tenuto.conformance.building import max_cost
from tenuto.conformance.cases import Case, CaseError, all_cases, selected
from tenuto.conformance.compare import Comparison, Side, Terms, compare_cases, compare_requests
from tenuto.conformance.exchange import Request
from tenuto.conformance.facts import (
    UNKNOWN_MODEL,
    Facts,
    discover,
    limit_probe,
    probes,
    told_limit,
)
from tenuto.conformance.recording import Recorder, Recording, require_free
from tenuto.conformance.run import Cost, Result, Sender, affordable, cost_of, run_cases
from tenuto.conformance.transport import Patience, Server
from tenuto.conformance.verdict import Report, load_baseline

# The models, their information, the metrics, and two ways to token ids.
FIXED_REQUESTS, FIXED_TOKENS = 5, 64


@dataclass(frozen=True)
class Target:
    """A server. `timeout_s` bounds each whole answer, `prompts` are the user's own by name, and
    `limited_key` may make only a few requests a minute. Models that are None: what it lists."""

    base_url: str
    key: str | None = None
    model: str | None = None
    rejecting_model: str | None = None
    timeout_s: float = 60.0
    prompts: Mapping[str, str] = field(default_factory=dict)
    limited_key: str | None = None


@dataclass(frozen=True)
class Wishes:
    """`on_cost` hears in advance what the run may cost, `on_result` each result as it comes."""

    cases: Sequence[Case] = field(default_factory=all_cases)
    budget: Cost | None = None
    baseline: Path | None = None
    parallel: int = 4
    on_cost: Callable[[Cost, int], None] = lambda cost, num_cases: None
    on_result: Callable[[Result], None] = lambda result: None


@asynccontextmanager
async def connected(target: Target, cases: Sequence[Case]) -> AsyncIterator[tuple[Server, Facts]]:
    """The server, and what the kit must learn of it for these cases.

    Errors: `CaseError` when nothing listens.
    """
    url = normalised(target.base_url)
    server = Server(url, target.key, target.timeout_s, target.limited_key)
    try:
        models = await server.send(Request("GET", "/v1/models"))
        if models.failure == "cannot connect":
            raise CaseError(f"cannot connect to {server.base_url}")
        facts = await discover(
            server.send,
            models,
            asked(cases),
            target.prompts,
            model=target.model,
            rejecting=target.rejecting_model,
        )
        has_limited = target.limited_key is not None
        if has_limited and meets_a_limit(cases):
            facts = replace(facts, limit=told_limit(await server.send(limit_probe(facts.model))))
        # What learning about the server cost in patience, its cases have not tried yet.
        server.patience = Patience()
        yield server, replace(facts, key=target.key is not None, limited_key=has_limited)
    finally:
        await server.close()


async def check(target: Target, wishes: Wishes) -> Report:
    """Runs the wished cases against a server. Errors: `CaseError`."""
    async with connected(target, wishes.cases) as (server, facts):
        return await _run(server, server.base_url, facts, wishes, server)


async def record(target: Target, wishes: Wishes, directory: Path, origin: str) -> Report:
    """The same, and keeps every exchange. Errors: `CaseError`, also for a directory in use."""
    require_free(directory)
    async with connected(target, wishes.cases) as (server, facts):
        recorder = Recorder(
            server, directory, origin or server.base_url, __version__, key=target.key
        )
        report = await _run(recorder, server.base_url, facts, wishes, server)
        recorder.save(facts, [r.case for r in report.results if r.outcome != "not run"])
        return report


async def replay(directory: Path, wishes: Wishes) -> Report:
    """What the cases say of a recording that was made of them. Errors: `CaseError`."""
    recording = Recording.open(directory)
    if not recording.is_of_cases:
        raise CaseError(f"{directory} was not recorded from the cases: compare it with a server")
    return await _run(recording, recording.about.origin, recording.facts, wishes)


async def compare(
    a: Target | Path, b: Target | Path, only: Sequence[str], terms: Terms
) -> Comparison:
    """By the cases, or by the requests of a recording that was not made of them.

    Errors: `CaseError`.
    """
    sources = [Recording.open(side) if isinstance(side, Path) else side for side in (a, b)]
    own = next((s for s in sources if isinstance(s, Recording) and not s.is_of_cases), None)
    cases = () if own else chosen(only)
    async with _side(sources[0], cases) as side_a, _side(sources[1], cases) as side_b:
        if own:
            requests = _matching(own.requests, only)
            return await compare_requests(requests, own.facts.model, side_a, side_b, terms)
        # The same questions to both, else nothing could be compared; a recording has its own.
        asked = side_b.facts if isinstance(side_b.sender, Recording) else side_a.facts
        side_a, side_b = (
            replace(side, facts=replace(side.facts, prompts=asked.prompts))
            for side in (side_a, side_b)
        )
        return await compare_cases(cases, side_a, side_b, terms)


async def _run(
    sender: Sender, target: str, facts: Facts, wishes: Wishes, server: Server | None = None
) -> Report:
    cases = wishes.cases
    expected = load_baseline(wishes.baseline, all_cases()) if wishes.baseline else {}
    learned = discovery_cost(cases) if server is not None else Cost()
    left = wishes.budget and wishes.budget - learned
    tried = affordable(cases, facts, left) if left else cases
    cost = cost_of(tried, facts)
    # Cases that are not applicable cost nothing; without any other there is no verdict.
    if wishes.budget and not cost.requests:
        raise CaseError("the budget allows no case")
    wishes.on_cost(cost + learned, len(tried))
    began = time.monotonic()
    ran = await run_cases(tried, sender, facts, wishes.parallel, wishes.on_result)
    if not any(result.outcome in ("passed", "failed") for result in ran):
        raise CaseError(f"no case could be tried: {ran[0].message}")
    return Report(
        target=target,
        facts=facts,
        results=with_the_rest(cases, ran),
        cost=cost + learned,
        elapsed_s=time.monotonic() - began,
        kit_version=__version__,
        expected=expected,
        rate_limited=server.patience.rate_limited if server else 0,
    )


def chosen(only: Sequence[str]) -> list[Case]:
    """All cases without any glob. Errors: `CaseError` when none is met."""
    cases = selected(all_cases(), only)
    if not cases:
        raise CaseError(f"no case matches {' '.join(only)}")
    return cases


def with_the_rest(cases: Sequence[Case], ran: Sequence[Result]) -> list[Result]:
    """What the budget left out is said to have been left out."""
    by_id = {result.case.id: result for result in ran}
    return [by_id.get(c.id) or Result(c, "not run", "beyond the budget") for c in cases]


def discovery_cost(cases: Sequence[Case]) -> Cost:
    """Of what is asked before the cases, at most."""
    requests = list(probes(asked(cases)))
    if meets_a_limit(cases):
        requests.append(limit_probe(UNKNOWN_MODEL))
    return Cost(len(requests) + FIXED_REQUESTS, sum(map(max_cost, requests)) + FIXED_TOKENS)


def asked(cases: Iterable[Case]) -> set[str]:
    return {name for case in cases for name in case.asks}


def meets_a_limit(cases: Iterable[Case]) -> bool:
    return any("limited_key" in case.needs for case in cases)


def normalised(base_url: str) -> str:
    """Clients are told a base URL with or without /v1; the cases name whole paths.

    Errors: `CaseError` for one that is none, or that holds credentials: it would be in reports.
    """
    try:
        parts = urlsplit(base_url)
        is_url = parts.port != 0 and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_url = False
    if not is_url:
        raise CaseError("the base URL is http://HOST[:PORT][/PATH] or https://…")
    if "@" in parts.netloc:
        raise CaseError("the base URL holds credentials: name the key's variable instead")
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


@asynccontextmanager
async def _side(source: Target | Recording, cases: Sequence[Case]) -> AsyncIterator[Side]:
    if isinstance(source, Recording):
        yield Side(source, source.facts, source.about.origin)
        return
    async with connected(source, cases) as (server, facts):
        yield Side(server, facts, server.base_url)


def _matching(requests: Mapping[str, Request], only: Sequence[str]) -> dict[str, Request]:
    def is_wanted(name: str) -> bool:
        return not only or any(fnmatchcase(name, glob) for glob in only)

    wanted = {name: request for name, request in requests.items() if is_wanted(name)}
    if not wanted:
        raise CaseError(f"no request of the recording matches {' '.join(only)}")
    return wanted
