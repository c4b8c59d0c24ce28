"""Comparisons: whose fault a difference is, and what is said of it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tenuto.conformance.cases import Case, all_cases, selected
from tenuto.conformance.compare import (
    VERDICT,
    Comparison,
    Side,
    Terms,
    compare_cases,
    compare_requests,
    renamed,
)
from tenuto.conformance.differing import Difference
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.facts import Facts
from tenuto.conformance.quirks import Expected, Verdict
from tenuto.conformance.recording import Recorder, Recording
from tenuto.conformance.report.comparison import print_comparison, to_json
from tenuto.conformance.run import NotRecorded
from tenuto.conformance.transport import Server
from tests.conftest import MODEL, Running

CHAT = "/v1/chat/completions"
FACTS = Facts(model=MODEL)
CASES = selected(all_cases(), ["models/*", "chat/n-choices", "chat-stream/n-choices"])


@pytest.mark.parametrize(
    ("path", "model", "new_path", "new_model"),
    [
        (CHAT, "a/b", CHAT, "c"),
        (CHAT, "other", CHAT, "other"),
        ("/engines/a/b/completions", "a/b", "/engines/c/completions", "c"),
        ("/v1/models/a/b", "x", "/v1/models/c", "x"),
        ("/v1/models/a/bc", "x", "/v1/models/a/bc", "x"),
    ],
)
def test_each_side_has_its_own_name_of_the_model(
    path: str, model: str, new_path: str, new_model: str
) -> None:
    request = renamed(Request("POST", path, {"model": model, "n": 1}), "a/b", "c")
    assert (request.path, request.body) == (new_path, {"model": new_model, "n": 1})
    assert renamed(Request("GET", "/x"), "a", "b") == Request("GET", "/x")


@dataclass
class Changed:
    """Another sender's answers, changed."""

    sender: Any
    change: Callable[[Exchange], Exchange]

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        return self.change(await self.sender.send(request, leave))

    @asynccontextmanager
    async def one_connection(self) -> AsyncIterator["Changed"]:
        yield self


@pytest.fixture
async def live(server: Running) -> AsyncIterator[Side]:
    sender = Server(server.url)
    yield Side(sender, FACTS, server.url)
    await sender.close()


@pytest.fixture
async def recorded(live: Side, tmp_path: Path) -> Side:
    """What the cases got of the live server."""
    recorder = Recorder(live.sender, tmp_path / "recorded", "the same", "1")
    await compare_cases(CASES, replace(live, sender=recorder), live, Terms())
    recording = Recording.open(recorder.save(FACTS, CASES))
    return Side(recording, recording.facts, "recorded")


def reopened(side: Side) -> Side:
    assert isinstance(side.sender, Recording)
    return replace(side, sender=Recording.open(side.sender.directory))


def refuse(exchange: Exchange) -> Exchange:
    """As if n were not known."""
    body = exchange.request.body or {}
    return exchange if body.get("n") is None else replace(exchange, status=400, text="{}")


def without_owner(exchange: Exchange) -> Exchange:
    return replace(exchange, text=exchange.text.replace('"owned_by"', '"owner"'))


async def test_a_recording_agrees_with_its_server(live: Side, recorded: Side) -> None:
    heard: list[str] = []
    by_cases = await compare_cases(CASES, recorded, live, Terms(on_compared=heard.append))
    assert sorted(heard) == sorted(case.id for case in CASES)
    sender = reopened(recorded).sender
    assert isinstance(sender, Recording)
    by_requests = await compare_requests(
        sender.requests, MODEL, replace(recorded, sender=sender), live, Terms()
    )
    for comparison in (by_cases, by_requests):
        assert list(comparison.found) == []
        assert comparison.not_compared == {}
        assert comparison.conforms
    assert len(by_cases.pairs) == sum(len(case.send) for case in CASES)
    assert set(by_requests.names) == set(sender.requests)


async def test_a_changed_answer_is_new(live: Side, recorded: Side) -> None:
    [path] = (recorded.sender.directory).glob("models_one_*.json")  # type: ignore[attr-defined]
    path.write_text(path.read_text().replace('"owned_by"', '"owner"'))
    sender = reopened(recorded).sender
    comparison = await compare_requests(
        sender.requests,  # type: ignore[attr-defined]
        MODEL,
        replace(recorded, sender=sender),
        live,
        Terms(),
    )
    assert [(f.request, f.difference, f.verdict) for f in comparison.found] == [
        ("models/one:answer", Difference("owned_by", "absent", "present"), Verdict("new")),
        ("models/one:answer", Difference("owner", "present", "absent"), Verdict("new")),
    ]
    assert not comparison.conforms


@pytest.mark.parametrize(("broken", "accepted"), [("A", True), ("B", False)])
async def test_who_fails_a_case_is_to_blame(
    live: Side, recorded: Side, broken: str, accepted: bool
) -> None:
    a, b = recorded, live
    if broken == "A":
        a = replace(a, sender=Changed(a.sender, refuse))
    else:
        b = replace(b, sender=Changed(b.sender, refuse))
    comparison = await compare_cases(CASES, a, b, Terms())
    found = {f.request: (f.difference.aspect, f.verdict) for f in comparison.found}
    case = case_of("chat/n-choices")
    assert found.keys() == {
        f"{way}/n-choices{name}" for way in ("chat", "chat-stream") for name in ("", ":answer")
    }
    assert found["chat/n-choices"][0] == VERDICT
    for aspect, verdict in found.values():
        assert aspect in (VERDICT, "status")
        assert (verdict.kind, verdict.side) == ("breaks", broken)
        assert (verdict.level, verdict.source) == (case.level, case.source)
        assert "400" in verdict.why
    assert comparison.conforms is accepted


async def test_a_case_that_both_fail_is_nobodys_fault(live: Side, recorded: Side) -> None:
    a, b = (replace(side, sender=Changed(side.sender, refuse)) for side in (recorded, live))
    comparison = await compare_cases(CASES, a, b, Terms())
    assert list(comparison.found) == []


async def test_a_known_difference_stays_known_in_a_failed_case(live: Side) -> None:
    def change(exchange: Exchange) -> Exchange:
        text = exchange.text.replace(',"logprobs":null', "").replace('"index":1', '"index":9')
        return replace(exchange, text=text)

    changed = replace(live, sender=Changed(live.sender, change))
    comparison = await compare_cases([case_of("chat/n-choices")], live, changed, Terms())
    kinds = {f.difference.aspect: f.verdict.kind for f in comparison.found}
    assert kinds == {VERDICT: "breaks", "choices[].logprobs": "known"}


def case_of(id: str) -> Case:
    return next(case for case in all_cases() if case.id == id)


async def test_what_cannot_be_compared_is_said(live: Side, recorded: Side) -> None:
    case = next(case for case in all_cases() if "rejecting_model" in case.needs)
    other = replace(recorded, facts=replace(FACTS, rejecting_model="x"))
    comparison = await compare_cases([case, case_of("chat/seed-repeats")], other, live, Terms())
    assert not comparison.conforms
    assert {name: why[:2] for name, why in comparison.not_compared.items()} == {
        case.id: "A:",
        "chat/seed-repeats": "A:",
    }
    unknown = {"x": Request("GET", "/x")}
    comparison = await compare_requests(unknown, MODEL, recorded, live, Terms())
    assert "no such GET /x" in comparison.not_compared["x"]
    with pytest.raises(NotRecorded):
        await recorded.sender.send(unknown["x"])


async def expecting(live: Side, recorded: Side, *expected: Expected) -> Comparison:
    a = replace(recorded, sender=Changed(recorded.sender, without_owner))
    cases = selected(CASES, ["models/one"])
    return await compare_cases(cases, a, live, Terms(expected=expected))


async def test_a_baseline_is_for_what_is_there(live: Side, recorded: Side) -> None:
    rows = [
        Expected(request="models/*", aspect=x, why="so") for x in ("owner", "owned_by", VERDICT)
    ]
    comparison = await expecting(live, recorded, *rows)
    assert {f.verdict for f in comparison.found} == {Verdict("expected", "so")}
    assert comparison.conforms
    gone = Expected(request="models/one:answer", aspect="object", why="it was so")
    elsewhere = Expected(request="chat/*", aspect="object", why="not compared now")
    comparison = await expecting(live, reopened(recorded), *rows, gone, elsewhere)
    assert list(comparison.stale) == [gone]
    assert not comparison.conforms


def printed(comparison: Comparison, **how: Any) -> str:
    output = io.StringIO()
    print_comparison(Console(file=output, width=200), comparison, **how)
    return output.getvalue()


async def test_the_report_shows_both_sides(live: Side, recorded: Side) -> None:
    def change(exchange: Exchange) -> Exchange:
        text = exchange.text.replace(',"logprobs":null', "").replace('"index":', '"place":')
        return (
            refuse(replace(exchange, text=text))
            if exchange.is_stream
            else replace(exchange, text=text)
        )

    case = next(case for case in all_cases() if "rejecting_model" in case.needs)
    gone = Expected(request="models/one", aspect="x", why="it was so")
    b = replace(live, sender=Changed(live.sender, change))
    comparison = await compare_cases([*CASES, case], recorded, b, Terms(expected=[gone]))
    text = printed(comparison)
    for part in (
        "A: recorded",
        f"B: {live.target}",
        "chat/n-choices:answer",
        "choices[].index",
        "B breaks hosted/n (documented)",
        "stale, take it out of the baseline: models/one x (it was so)",
        "1 not compared: A: not applicable",
        "B does not conform: ",
        "1 known, 1 stale, 1 not compared",
    ):
        assert part in text, text
    assert "choices[].logprobs" not in text
    assert "choices[].logprobs" in printed(comparison, all_known=True)


async def test_the_report_as_json(live: Side, recorded: Side) -> None:
    b = replace(live, sender=Changed(live.sender, refuse))
    comparison = await compare_cases(CASES, recorded, b, Terms())
    data = json.loads(to_json(comparison))
    assert (data["a"], data["b"], data["conforms"]) == ("recorded", live.target, False)
    assert data["compared"] == len(comparison.pairs)
    assert data["counts"]["broken_by_B"] == len(data["differences"]) == 4
    assert data["differences"][0].keys() >= {
        "request",
        "aspect",
        "a",
        "b",
        "class",
        "why",
        "source",
    }


async def test_agreement_is_said_in_a_line(live: Side, recorded: Side) -> None:
    comparison = await compare_cases(CASES[:1], recorded, live, Terms())
    assert printed(comparison) == "B conforms: 1 request compared, no differences\n"
