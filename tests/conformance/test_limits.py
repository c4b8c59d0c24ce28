"""A key that may make only a few requests a minute: how its limit is met, and at what cost."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenuto.conformance import scrubbing
from tenuto.conformance.cases import all_cases, selected
from tenuto.conformance.checks.registry import ACROSS
from tenuto.conformance.exchange import Broken, Exchange, Request, Unsuitable
from tenuto.conformance.facts import Facts, limit_probe, told_limit
from tenuto.conformance.report.curl import curl
from tenuto.conformance.run import Cost, cost_of
from tenuto.conformance.session import Target, Wishes, check, chosen, record, replay
from tenuto.conformance.transport import MAX_LIMIT, MAX_UNTIL_LIMITED, Server
from tests.conformance.red import LIMIT, faulty_server
from tests.conformance.test_misbehaving import JSON, LIMITED, http, raw, says
from tests.conformance.variants_asked import HONEST_KEY, LIMITED_KEY

ONLY = ["limits/*"]
CASES = selected(all_cases(), ONLY)
OK, REFUSED = http(b"{}", JSON), http(b"{}", JSON, "retry-after: 0", status=LIMITED)
GET = Request("GET", "/x", auth="limited")


@pytest.fixture
def target() -> Iterator[Target]:
    """A server of its own for each test: a run uses the key's minute up."""
    with faulty_server() as url:
        yield Target(url, HONEST_KEY, timeout_s=10, limited_key=LIMITED_KEY)


async def outcomes(target: Target) -> dict[str, str]:
    report = await check(target, Wishes(chosen([*ONLY, "models/list"])))
    assert report.conforms
    return {r.case.id: r.outcome for r in report.results if r.case.group == "limits"}


async def test_a_limit_is_met_once(target: Target) -> None:
    assert {*(await outcomes(target)).values()} == {"passed"}
    again = await outcomes(target)
    assert again.pop("limits/counts-down") == "not judged"
    assert {*again.values()} == {"passed"}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, "no key with a limit was given"),
        (HONEST_KEY, "the limited key is not told its limit (x-ratelimit-limit-requests)"),
    ],
)
async def test_a_key_without_a_limit_is_not_used_up(
    target: Target, key: str | None, words: str
) -> None:
    wishes = Wishes(chosen([*ONLY, "models/list"]))
    report = await check(replace(target, limited_key=key), wishes)
    _, *limits = sorted(report.results, key=lambda r: r.case.group == "limits")
    assert {(r.outcome, r.message) for r in limits} == {("not applicable", words)}
    assert report.conforms


async def test_a_limited_key_is_in_no_recording(target: Target, tmp_path: Path) -> None:
    directory = tmp_path / "recorded"
    run = await record(target, Wishes(chosen(ONLY)), directory, "")
    assert LIMITED_KEY not in "".join(path.read_text() for path in directory.iterdir())
    again = await replay(directory, Wishes(chosen(ONLY)))
    assert {r.outcome for r in [*run.results, *again.results]} == {"passed"}


@pytest.mark.parametrize(
    ("answers", "status", "num_sent"),
    [
        ((REFUSED,), 429, 1),
        ((OK, OK, REFUSED), 429, 3),
        ((OK, http(b"", status="503 Busy")), 503, 2),
        ((OK,), 200, MAX_UNTIL_LIMITED),
    ],
)
async def test_a_key_is_used_until_its_limit(
    answers: tuple[bytes, ...], status: int, num_sent: int
) -> None:
    async with raw(says(*answers)) as running:
        server = Server(running.url, "sk-own", 5, "sk-few")
        exchange = await server.send(replace(GET, until="limited"))
        await server.close()
    assert (exchange.status, len(running.received)) == (status, num_sent)
    assert all(b"authorization: bearer sk-few\r\n" in sent.lower() for sent in running.received)


@pytest.mark.parametrize(
    ("auth", "num_waits", "untried"),
    [("limited", 0, False), ("limited", 1, False), ("key", 0, False), ("key", 1, True)],
)
async def test_who_is_not_patient_is_told_whose_limit_it_is(
    auth: Any, num_waits: int, untried: bool
) -> None:
    """The other key may be at a limit of its own: then nobody can tell."""
    async with raw(says(REFUSED)) as running:
        server = Server(running.url, "sk-own", 5, "sk-few")
        server.patience.rate_limited = num_waits
        exchange = await server.send(replace(GET, auth=auth, patient=False))
        await server.close()
    assert (exchange.status, exchange.untried, len(running.received)) == (429, untried, 1)
    assert server.patience.rate_limited == num_waits


async def test_no_exchange_holds_a_key() -> None:
    keys = ("sk-own-0123456789", "sk-few-0123456789")
    body = " ".join(keys).encode()
    async with raw(says(http(body, f"x-keys: {body.decode()}"))) as running:
        server = Server(running.url, keys[0], 5, keys[1])
        exchange = await server.send(GET)
        await server.close()
    scrubbed = " ".join([scrubbing.KEY] * 2)
    assert (exchange.text, exchange.headers["x-keys"]) == (scrubbed, scrubbed)


@pytest.mark.parametrize(
    ("headers", "limit"),
    [
        ({}, None),
        ({"x-ratelimit-limit-requests": "5"}, 5),
        ({"x-ratelimit-api_key-limit-requests": "6"}, 6),
        ({"x-ratelimit-limit-requests": "5;w=60"}, None),
        ({"x-ratelimit-limit-requests": "9" * 5000}, None),
    ],
)
def test_the_limit_is_what_the_key_is_told(headers: dict[str, str], limit: int | None) -> None:
    assert told_limit(Exchange(limit_probe("m"), 200, headers)) == limit


@pytest.mark.parametrize("limit", [None, 0, 1, MAX_LIMIT, MAX_LIMIT + 1])
def test_only_a_low_limit_is_met(limit: int | None) -> None:
    facts = Facts("m", limited_key=True, limit=limit)
    assert facts.has("low_limit") == (limit in (1, MAX_LIMIT))
    if limit == MAX_LIMIT + 1:
        assert (
            facts.lack("low_limit") == "the limited key may make 11 requests a minute, not 1 to 10"
        )


def test_what_it_may_cost() -> None:
    """Whatever of the minute is left when a case begins."""
    facts = Facts("m", limited_key=True, limit=LIMIT)
    refused = selected(CASES, ["limits/refused"])
    tokens = cost_of(selected(CASES, ["limits/another-key"]), facts).tokens // (LIMIT + 1)
    assert cost_of(refused, facts) == Cost(LIMIT + 1, LIMIT * tokens)
    assert cost_of(CASES, replace(facts, limited_key=False)) == Cost()
    assert all(case.alone for case in CASES)


def told(*left: int, limit: int = 5, status: int = 200) -> dict[str, Exchange]:
    """Answers named by their numbers."""
    names = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
    headers = [dict(zip(names, (str(limit), str(number)), strict=True)) for number in left]
    return {str(i): Exchange(GET, status, found) for i, found in enumerate(headers)}


@pytest.mark.parametrize("left", [(3, 2, 1), (4, 3, 2), (2, 2, 1), (0, 4, 3), (1, 0, 4)])
def test_what_is_left_counts_down(left: tuple[int, ...]) -> None:
    exchanges = told(*left)
    ACROSS["counts_down"](exchanges, [*exchanges])


@pytest.mark.parametrize(
    "exchanges",
    [
        told(3, 3, 3),
        told(1, 2, 3),
        told(4, 2, 0),
        told(5, 4, 3),
        told(3, 2, 1) | {"1": told(2, 2, limit=6)["1"]},
        told(3, 2, 1) | {"1": Exchange(GET, 200)},
    ],
)
def test_what_does_not_count_down(exchanges: dict[str, Exchange]) -> None:
    with pytest.raises(Broken) as caught:
        ACROSS["counts_down"](exchanges, [*exchanges])
    assert not isinstance(caught.value, Unsuitable)


def test_a_minute_that_is_used_up_shows_nothing() -> None:
    exchanges = told(1, 0, 0) | {"2": told(0, status=429)["0"]}
    with pytest.raises(Unsuitable, match="is not let in 3 times: wait a minute"):
        ACROSS["counts_down"](exchanges, [*exchanges])


def test_the_line_to_repeat_it() -> None:
    assert "-H 'authorization: Bearer '\"$LIMITED_API_KEY\"" in curl(GET, "http://a.test")
