"""Running cases: what they may cost, in which order they go, and what becomes of garbage."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tenuto.conformance.cases import Case, CaseError, all_cases, selected
from tenuto.conformance.checks import judge, refused
from tenuto.conformance.checks.registry import ACROSS, EACH
from tenuto.conformance.exchange import Broken, Exchange, Request
from tenuto.conformance.facts import SUITS, Facts
from tenuto.conformance.run import (
    Cost,
    NotRecorded,
    Result,
    affordable,
    cost_of,
    result_of,
    run_cases,
)

ENDPOINTS = ("chat", "completions")
PROMPTS = {f"{name}/{way}": "Hi" for name in (*SUITS, "stop") for way in ENDPOINTS}
FACTS = Facts("m", "rejecting", running_metric=True, prompts=PROMPTS)
SIMPLE = Case("own/a", None, "contract", "", "", "", (), False, {}, [])
Script = Callable[[Request], str]


def case(id: str, send: dict[str, Any], *check: dict[str, Any], **fields: Any) -> Case:
    return replace(SIMPLE, id=id, send=send, check=[*check] or [{"status": 200}], **fields)


def get(path: str, **http: Any) -> dict[str, Any]:
    return {"http": {"get": path, **http}}


@dataclass
class Scripted:
    """Answers at once, and keeps what was sent. One that will be left waits for it."""

    script: Script = lambda request: "{}"
    heard: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    beside: dict[str, set[str]] = field(default_factory=dict)

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        self.heard.append(request.path)
        self.running.add(request.path)
        # Lets everything begin that may begin.
        for _ in range(20):
            await asyncio.sleep(0)
        self.beside[request.path] = self.running - {request.path}
        text = self.script(request)
        if leave is not None:
            await leave.wait()
            self.heard.append(f"{request.path} left")
        self.running.discard(request.path)
        return Exchange(request, 200, {}, text, left=leave is not None)

    @asynccontextmanager
    async def one_connection(self) -> AsyncIterator["Scripted"]:
        self.heard.append("one connection")
        yield self
        self.heard.append("closed")


async def ran(cases: Sequence[Case], sender: Scripted, parallel: int = 4) -> list[Result]:
    return await run_cases(cases, sender, FACTS, parallel, lambda result: None)


COMPLETION = {"http": {"post": "/v1/completions"}, "prompt": "x" * 20}


def test_costs_are_added_up() -> None:
    big = COMPLETION | {"max_tokens": 100, "n": 2}
    cases = [
        case("own/free", {"answer": get("/v1/models")}),
        case("own/dear", {"a": big, "b": big}),
        case("own/refused", {"answer": big}, {"error": {"status": 400}}),
        case("own/half", {"bad": big, "good": big}, {"error": {}, "of": "bad"}),
    ]
    costs = [cost_of([c], FACTS) for c in cases]
    assert costs == [Cost(1), Cost(2, 420), Cost(1), Cost(2, 210)]
    assert cost_of(cases, FACTS) == Cost(6, 630)
    assert cost_of([], FACTS) == Cost()


def test_what_will_not_be_sent_costs_nothing() -> None:
    needy = case("own/needy", {"answer": COMPLETION}, needs=("rejecting_model",))
    assert cost_of([needy], FACTS).requests == 1
    assert cost_of([needy], Facts("m")) == Cost()


def test_who_must_be_refused() -> None:
    sent: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    assert refused(case("x/y", sent, {"error": {}})) == {*"abc"}
    assert refused(case("x/y", sent, {"error": {}, "of": ["a", "b"]}, {"schema": "x"})) == {*"ab"}
    assert refused(case("x/y", sent, {"status": 400})) == set()


def generating(id: str, level: Any, *max_tokens: int) -> Case:
    sent = {f"r{i}": COMPLETION | {"max_tokens": n} for i, n in enumerate(max_tokens)}
    return case(id, sent, level=level)


OFFERED = [
    generating("own/seen", "observed", 1),
    generating("own/dear", "documented", 500),
    generating("own/contract", "contract", 10),
    generating("own/cheap", "documented", 20),
    generating("own/twice", "documented", 10, 10),
]


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Cost(99, 9999), ["seen", "dear", "contract", "cheap", "twice"]),
        (Cost(1, 9999), ["cheap"]),
        (Cost(2, 9999), ["dear", "cheap"]),
        (Cost(3, 9999), ["cheap", "twice"]),
        (Cost(4, 9999), ["dear", "cheap", "twice"]),
        (Cost(99, 30), ["cheap"]),
        (Cost(99, 90), ["contract", "cheap", "twice"]),
        (Cost(99, 29), ["contract"]),
        (Cost(99, 19), ["seen"]),
        (Cost(99, 10), []),
        (Cost(0, 9999), []),
    ],
)
def test_a_budget_goes_to_the_documented_and_the_cheap(budget: Cost, chosen: list[str]) -> None:
    found = affordable(OFFERED, FACTS, budget)
    assert [c.id.removeprefix("own/") for c in found] == chosen
    assert cost_of(found, FACTS).fits(budget)


@pytest.mark.parametrize("budget", [Cost(30, 9999), Cost(200, 2000), Cost(9999, 500)])
def test_every_budget_is_kept(budget: Cost) -> None:
    found = affordable(all_cases(), FACTS, budget)
    assert 0 < len(found) < len(all_cases())
    assert cost_of(found, FACTS).fits(budget)
    assert found == [c for c in all_cases() if c in found]


async def test_a_need_that_is_not_met() -> None:
    needy = case("own/needy", {"answer": get("/x")}, needs=("key", "running_metric"))
    sender = Scripted()
    result = await result_of(needy, sender, Facts("m", key=True))
    assert (result.outcome, result.message) == (
        "not applicable",
        "the server has no running metric",
    )
    assert (sender.heard, result.breaks) == ([], False)


async def test_what_was_not_recorded_was_not_run() -> None:
    def script(request: Request) -> str:
        if request.path == "/b":
            raise NotRecorded("no such GET /b")
        return "{}"

    [result] = await ran([case("own/a", {"a": get("/a"), "b": get("/b")})], Scripted(script))
    assert (result.outcome, result.message) == ("not run", "no such GET /b")
    assert [*result.exchanges] == ["a"]
    assert not result.breaks


def asking(name: str) -> Case:
    return case("chat/own", {"a": {"ask": name}}, {"status": 200}, way="chat-stream")


async def test_without_its_prompt_a_case_is_not_judged() -> None:
    sender = Scripted()
    facts = replace(FACTS, prompts={"short/chat": "Hi", "open/completions": "Hi"})
    result = await result_of(asking("open"), sender, facts)
    assert (result.outcome, result.breaks) == ("not judged", False)
    assert result.message == "no prompt was found that is open/chat for this model"
    assert sender.heard == []
    assert (await result_of(asking("short"), sender, facts)).outcome == "passed"
    no_way = case("own/a", {"a": get("/x")})
    assert (await result_of(no_way, sender, Facts("m"))).outcome == "passed"


@dataclass
class Impatient(Scripted):
    """Has no answer to what is at `untried`: it was not sent, or is over a limit without an end."""

    untried: str = "/b"

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        exchange = await super().send(request, leave)
        if request.path == self.untried:
            return replace(exchange, status=None, failure="not sent", untried=True)
        return exchange


async def test_what_was_not_tried_is_not_judged() -> None:
    cases = [
        case("own/a", {"a": get("/a")}, {"status": 400}),
        case("own/b", {"b": get("/b")}),
        case("own/both", {"a": get("/a"), "b": get("/b")}),
    ]
    results = await ran(cases, Impatient())
    assert [r.outcome for r in results] == ["failed", "not judged", "not judged"]
    assert [r.breaks for r in results] == [True, False, False]
    assert results[2].message == "b: not sent"
    assert [*results[2].exchanges] == ["a", "b"]


@pytest.mark.parametrize("names", ["a", "ab"])
async def test_what_the_model_cannot_show_is_not_judged(names: str) -> None:
    def script(request: Request) -> str:
        return json.dumps({"choices": [{"index": 0, "text": texts[request.path]}]})

    made = case("own/a", {n: get(f"/{n}") for n in names}, {"whole_characters": True})
    texts = {"/a": "naïve", "/b": "naive"} if names == "ab" else {"/a": "naive"}
    [result] = await ran([made], Scripted(script))
    assert (result.outcome, result.breaks) == ("not judged", False)
    assert "the text is ASCII alone" in result.message
    texts["/a"] = "na\ufffdve"
    [result] = await ran([made], Scripted(script))
    assert (result.outcome, result.breaks) == ("failed", True)


async def test_passed_and_failed() -> None:
    cases = [
        case("own/good", {"answer": get("/x")}, {"body": {}}),
        case("own/bad", {"answer": get("/x")}, {"body": {"id": "{model}"}}),
        case("own/seen", {"answer": get("/x")}, {"body": {"id": 1}}, level="observed"),
    ]
    reported: list[Result] = []
    results = await run_cases(cases, Scripted(), FACTS, 1, reported.append)
    assert [(r.outcome, r.breaks) for r in results] == [
        ("passed", False),
        ("failed", True),
        ("failed", False),
    ]
    assert results[1].message == "there is no id: {}"
    assert reported == results
    assert [*results[0].exchanges] == ["answer"]


async def test_results_are_in_the_order_of_the_cases() -> None:
    cases = [case(f"own/{i}", {"answer": get(f"/{i}")}, alone=i % 3 == 0) for i in range(9)]
    results = await ran(cases, Scripted())
    assert [r.case for r in results] == cases


async def test_no_more_at_a_time_than_told() -> None:
    for parallel in (1, 3):
        sender = Scripted()
        await ran([case(f"own/{i}", {"a": get(f"/{i}")}) for i in range(9)], sender, parallel)
        assert max(len(others) for others in sender.beside.values()) == parallel - 1


async def test_whoever_is_alone_runs_alone_and_last() -> None:
    cases = [
        case("own/first", {"answer": get("/first")}, alone=True),
        case("own/b", {"answer": get("/b")}),
        case("own/second", {"answer": get("/second")}, alone=True),
        case("own/c", {"answer": get("/c")}),
    ]
    sender = Scripted()
    await ran(cases, sender)
    assert {*sender.heard[:2]} == {"/b", "/c"}
    assert sender.heard[2:] == ["/first", "/second"]
    assert "/c" in sender.beside["/b"]
    assert sender.beside["/first"] == sender.beside["/second"] == set()


async def test_a_request_is_left_when_another_is_answered() -> None:
    sent = {
        "stream": get("/stream", leave_after="before"),
        "before": get("/before"),
        "after": get("/after"),
    }
    sender = Scripted()
    [result] = await ran([case("own/a", sent)], sender)
    assert result.outcome == "passed"
    assert [*result.exchanges] == ["before", "stream", "after"]
    assert result.exchanges["stream"].left
    assert sender.heard.index("/stream left") == sender.heard.index("/after") - 1
    assert "/stream" in sender.beside["/before"]
    assert sender.beside["/after"] == set()


async def test_one_connection_for_those_that_want_it() -> None:
    sender = Scripted()
    sent = {"a": get("/a"), "b": get("/b", connection="one")}
    await ran([case("own/a", sent), case("own/c", {"c": get("/c")})], sender, 1)
    assert sender.heard == ["one connection", "/a", "/b", "closed", "/c"]


def test_who_says_nothing_of_the_status_wants_success() -> None:
    exchange = Exchange(Request("GET", "/x"), 503, {}, "busy")
    two = {"a": exchange, "b": replace(exchange, status=200, text="{}")}
    with pytest.raises(Broken, match="a: status 503 instead of 200: busy"):
        judge("x/y", [{"body": {}, "of": "b"}], two)
    judge("x/y", [{"body": {}, "of": "b"}, {"status": 503, "of": ["a"]}], two)
    judge("x/y", [{"body": {}, "of": "b"}], {**two, "a": replace(exchange, left=True)})
    with pytest.raises(Broken, match="gone"):
        judge("x/y", [{"body": {}}], {"a": replace(exchange, status=200, failure="gone")})


def test_a_check_that_does_not_exist_is_the_kits_fault() -> None:
    with pytest.raises(CaseError, match="x/y: there is no check 'wished'"):
        judge("x/y", [{"wished": 1}], {})


CHOICE = {
    "index": 0,
    "finish_reason": "stop",
    "message": {
        "content": "one",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    },
    "token_ids": [1],
    "logprobs": {
        "content": [
            {"token": "one", "logprob": -1, "top_logprobs": [{"token": "one", "logprob": -1}]}
        ]
    },
}
WHOLE = {
    "id": "x",
    "data": [{"id": "m", "model_info": {}}],
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "prompt_logprobs": [None],
    "total_tokens": 2,
    "error": {"message": "x", "type": None, "param": None, "code": "400"},
}
GARBAGE: list[Any] = [None, 1e999, "x", [], {}, [[None]], {"a": [{}]}]


def spoilt(value: Any) -> Iterator[Any]:
    """The value with one part after the other replaced by garbage."""
    yield from GARBAGE
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        parts = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
    for key, inner in parts:
        for worse in spoilt(inner):
            copied = copy.copy(value)
            copied[key] = worse
            yield copied


SPOILT = [*spoilt({**WHOLE, "error": 1}), *spoilt(WHOLE["error"])]
EACH_CHECK = {name: c for c in all_cases() for check in c.check for name in check if name != "of"}


@pytest.mark.parametrize("check", sorted(EACH.keys() | ACROSS.keys()))
@pytest.mark.parametrize("streamed", [False, True])
async def test_garbage_is_a_failed_result(check: str, streamed: bool) -> None:
    """Whatever a server sends, no check raises anything else than what it is for."""
    chosen = EACH_CHECK[check]
    names = list(chosen.send)
    request = Request("POST", "/v1/chat/completions", {"stream": streamed})
    for garbage in SPOILT:
        text = json.dumps(garbage)
        text = f"data: {text}\n\ndata: {text}\n\n" if streamed else text
        exchanges = dict.fromkeys(names, Exchange(request, 200, {}, text))
        with suppress(Broken):
            judge(chosen.id, [c for c in chosen.check if check in c], exchanges)


async def test_garbage_of_a_whole_case() -> None:
    cases = selected(all_cases(), ["chat/*", "http/*"])[:60]
    for text in ("", "null", "[" * 9999, '{"choices": [{"index": {}}]}', "data: {\n\n", "\x00"):
        sender = Scripted(lambda request, text=text: text)  # type: ignore[misc]
        for result in await ran(cases, sender):
            needs_more = result.case.needs
            assert result.outcome in ("passed", "failed") or needs_more
            assert result.message or result.outcome == "passed"
