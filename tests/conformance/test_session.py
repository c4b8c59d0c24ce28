"""From a target and wishes to a report, against a real server whose faults are known."""

import asyncio
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tenuto.conformance import scrubbing, session
from tenuto.conformance.cases import CaseError, all_cases, selected
from tenuto.conformance.compare import Terms
from tenuto.conformance.facts import SUITS
from tenuto.conformance.recording import BUNDLED, Recording
from tenuto.conformance.report.html import to_html
from tenuto.conformance.report.json_report import to_json
from tenuto.conformance.report.junit import to_junit
from tenuto.conformance.report.terminal import print_report
from tenuto.conformance.run import Cost, Result, cost_of
from tenuto.conformance.session import (
    Target,
    Wishes,
    check,
    chosen,
    compare,
    discovery_cost,
    normalised,
    record,
)
from tenuto.conformance.verdict import Report
from tests.conformance.red import REJECTING, faulty_server
from tests.conformance.test_misbehaving import JSON, NONSENSE, http, raw
from tests.conformance.variants_asked import HONEST_KEY, LIMITED_KEY
from tests.conftest import MODEL

# Enough to tell the toy server from one that ignores n.
ONLY = ["*/n-choices", "models/*"]
HOSTED = BUNDLED / "hosted-stack"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with faulty_server() as url:
        yield url


@pytest.fixture
def honest(url: str) -> Target:
    return Target(url, HONEST_KEY, timeout_s=10)


@pytest.fixture
def faulty(honest: Target) -> Target:
    return replace(honest, base_url=f"{honest.base_url}/faults/ignores-n")


@pytest.mark.parametrize("end", ["", "/", "//", "/v1", "/v1/", "//v1//"])
def test_a_base_url_may_end_as_it_likes(end: str) -> None:
    assert normalised(f"https://a.test/v1x{end}") == "https://a.test/v1x"


@pytest.mark.parametrize("end", ["/v1/", "/v1"])
async def test_a_base_url_is_met(honest: Target, end: str) -> None:
    target = replace(honest, base_url=honest.base_url + end)
    report = await check(target, Wishes(chosen(["models/list"])))
    assert (report.target, report.conforms) == (honest.base_url, True)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "127.0.0.1:80", "ftp://a.test", "http://", "http:///v1", "http://a:b"]
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(CaseError, match=r"the base URL is http://HOST"):
        normalised(url)


@pytest.mark.parametrize("before", ["ada:secret@", "ada@", ":secret@", "@"])
def test_a_base_url_holds_no_credentials(before: str) -> None:
    """It stands in every report."""
    with pytest.raises(CaseError, match="holds credentials") as caught:
        normalised(f"https://{before}a.test/v1")
    assert "secret" not in str(caught.value)


async def test_a_run_is_reported(honest: Target) -> None:
    heard: list[Result] = []
    told: list[tuple[Cost, int]] = []
    wishes = Wishes(chosen(ONLY), on_cost=lambda *cost: told.append(cost), on_result=heard.append)
    report = await check(honest, wishes)
    assert [r.case for r in report.results] == selected(all_cases(), ONLY)
    assert {r.outcome for r in report.results} == {"passed"}
    assert sorted(r.case.id for r in heard) == sorted(r.case.id for r in report.results)
    assert told == [(report.cost, len(heard))]
    cases = selected(all_cases(), ONLY)
    assert report.cost == cost_of(cases, report.facts) + discovery_cost(cases)
    assert (report.conforms, report.rate_limited, report.elapsed_s > 0) == (True, 0, True)


async def test_what_is_learnt_of_the_server(honest: Target) -> None:
    facts = (await check(honest, Wishes(chosen(["models/list"])))).facts
    assert (facts.model, facts.rejecting_model) == (MODEL, REJECTING)
    assert facts.running_metric
    assert facts.key
    assert facts.context == 8192
    # Tokens of a text, of which the toy has one for each letter.
    assert {*facts.ids} <= {*b"Once upon a time"}
    # Nothing is looked for that no case asks for.
    assert facts.prompts == {}


async def test_prompts_are_looked_for_where_a_case_asks(honest: Target) -> None:
    facts = (
        await check(honest, Wishes(chosen(["chat/stop-list-of-four", "chat/top_k-limits"])))
    ).facts
    assert {*facts.prompts} == {"short/chat", "stop/chat", "open/chat"}
    ways = ("chat", "completions")
    report = await check(
        honest, Wishes(chosen(["*-spares-the-prompt", "*/top_k-limits", "*/stop-*"]))
    )
    assert {*report.facts.prompts} == {f"{n}/{w}" for n in (*SUITS, "stop") for w in ways}
    assert report.conforms


async def test_what_is_learnt_costs_no_more_than_told() -> None:
    """Of a server of which nothing can be learnt: every prompt is tried."""
    cases = [case for case in all_cases() if case.asks]
    async with raw(NONSENSE["html"]) as running:
        async with session.connected(Target(running.url, "sk-own"), cases) as (_, facts):
            assert (facts.prompts, facts.context) == ({}, None)
        assert len(running.received) == discovery_cost(cases).requests


OPEN = ["models/list", "chat/top_k-limits"]


async def test_a_prompt_of_the_users_own(honest: Target) -> None:
    own = replace(honest, prompts={"open": "Tell me something else.", "short": "Hello!"})
    report = await check(own, Wishes(chosen(OPEN)))
    assert report.facts.prompts == {"open/chat": "Tell me something else."}
    assert report.conforms


async def test_a_prompt_that_does_not_suit_leaves_no_verdict(honest: Target) -> None:
    report = await check(replace(honest, prompts={"open": "ha ha ha ha "}), Wishes(chosen(OPEN)))
    assert [r.outcome for r in report.results] == ["passed", "not judged"]
    assert report.results[1].exchanges == {}
    assert report.verdict == "no verdict"
    with pytest.raises(CaseError, match="no case could be tried: no prompt was found"):
        await check(replace(honest, prompts={"open": "ha ha ha ha "}), Wishes(chosen(OPEN[1:])))


async def test_what_the_owner_knows_better(honest: Target) -> None:
    target = replace(honest, model=REJECTING, rejecting_model="other", key=None)
    facts = (await check(target, Wishes(chosen(["models/list"])))).facts
    assert (facts.model, facts.rejecting_model, facts.key) == (REJECTING, "other", False)


async def test_a_fault_is_found_where_it_is(faulty: Target) -> None:
    report = await check(faulty, Wishes(chosen(ONLY)))
    assert sorted(r.case.id for r in report.failures) == [
        "chat-stream/n-choices",
        "chat/n-choices",
        "completions-stream/n-choices",
        "completions/n-choices",
    ]
    assert not report.conforms
    assert report.failures[0].message == "the choices' indexes is [0] instead of [0, 1, 2]"


async def test_beyond_the_budget(honest: Target) -> None:
    only = ["models/*", "*/answers"]
    budget = Cost(3) + discovery_cost(selected(all_cases(), only))
    report = await check(honest, Wishes(chosen(only), budget))
    run = [r.case.id for r in report.results if r.outcome != "not run"]
    assert run == ["models/list", "models/list-names-each-once", "models/list-object"]
    assert {r.message for r in report.results if r.outcome == "not run"} == {"beyond the budget"}
    assert len(report.results) == 10
    assert report.cost == budget
    assert report.conforms


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(chosen(["models/*"]), Cost(0, 0)), "the budget allows no case"),
        # What has to be learnt first takes five.
        (Wishes(chosen(["models/*"]), Cost(5, 999)), "the budget allows no case"),
        (Wishes(baseline=Path("nowhere.yaml")), "cannot read the baseline"),
    ],
)
async def test_a_wish_that_cannot_be_met(honest: Target, wishes: Wishes, words: str) -> None:
    with pytest.raises(CaseError, match=words):
        await check(honest, wishes)


def test_globs_that_no_case_meets() -> None:
    with pytest.raises(CaseError, match="no case matches nothing at/all"):
        chosen(["nothing", "at/all"])


async def test_recorded_replayed_and_compared(
    honest: Target, faulty: Target, tmp_path: Path
) -> None:
    directory = tmp_path / "recorded"
    report = await record(honest, Wishes(chosen([*ONLY, "http/keep-alive"])), directory, "the toy")
    assert report.conforms
    again = await session.replay(directory, Wishes(chosen(ONLY)))
    assert (again.target, again.facts, again.conforms) == ("the toy", report.facts, True)
    assert {r.outcome for r in again.results} == {"passed"}
    more = await session.replay(directory, Wishes(chosen(["models/list", "chat/answers"])))
    assert [r.outcome for r in more.results] == ["passed", "not run"]
    same = await compare(directory, honest, ONLY, Terms())
    assert [(f.request, f.difference) for f in same.found] == []
    assert same.conforms
    other = await compare(directory, faulty, ONLY, Terms())
    assert not other.conforms
    assert {"chat/n-choices", "completions-stream/n-choices"} <= {f.request for f in other.failures}


@pytest.mark.conformance
async def test_a_whole_run_is_replayed_with_the_same_outcomes(
    honest: Target, tmp_path: Path
) -> None:
    target = replace(honest, rejecting_model=REJECTING, limited_key=LIMITED_KEY)
    run = await record(target, Wishes(parallel=8), tmp_path / "recorded", "")
    again = await session.replay(tmp_path / "recorded", Wishes())
    assert again.facts == run.facts
    assert [(r.case.id, r.outcome, r.message) for r in again.results] == [
        (r.case.id, r.outcome, r.message) for r in run.results
    ]
    assert (again.verdict, again.counts()) == ("conforms", {"passed": len(all_cases())})


async def test_both_sides_are_asked_the_same(honest: Target) -> None:
    """Even when each by itself would suggest other prompts."""
    other = replace(honest, base_url=f"{honest.base_url}/faults/ignores-max_tokens")
    name = "chat/presence_penalty-spares-the-prompt"
    prompts = [(await check(t, Wishes(chosen([name])))).facts.prompts for t in (honest, other)]
    assert prompts[0] != prompts[1]
    compared = await compare(honest, other, [name], Terms())
    assert len(compared.pairs) == 2
    assert [pair for pair in compared.pairs if pair.a.request != pair.b.request] == []


async def test_what_the_budget_left_out_names_no_recorded_request(
    honest: Target, tmp_path: Path
) -> None:
    directory = tmp_path / "recorded"
    budget = Cost(2) + discovery_cost([])
    await record(honest, Wishes(chosen(["models/*"]), budget), directory, "")
    recording = Recording.open(directory)
    assert recording.about.origin == honest.base_url
    named = {name for name in recording.requests if name.startswith("models/")}
    assert named == {"models/list:answer"}


async def test_a_recording_that_has_no_place(honest: Target, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    heard: list[Result] = []
    with pytest.raises(CaseError, match="not empty"):
        await record(honest, Wishes(on_result=heard.append), tmp_path, "")
    assert heard == []


async def test_a_recording_of_other_requests_is_only_compared(honest: Target) -> None:
    with pytest.raises(CaseError, match="was not recorded from the cases"):
        await session.replay(HOSTED, Wishes())
    compared = await compare(HOSTED, honest, (), Terms())
    assert len(compared.pairs) == 54
    assert compared.not_compared == {}
    some = await compare(HOSTED, honest, ["models*", "chat_n"], Terms())
    assert sorted(pair.request for pair in some.pairs) == [
        "chat_n",
        "models",
        "models_alias",
        "models_noauth",
    ]
    with pytest.raises(CaseError, match="no request of the recording matches nothing"):
        await compare(HOSTED, honest, ["nothing"], Terms())


async def test_what_is_no_recording(honest: Target, tmp_path: Path) -> None:
    for work in (session.replay(tmp_path, Wishes()), compare(tmp_path, honest, (), Terms())):
        with pytest.raises(CaseError, match=r"recording\.json"):
            await work


def reports(report: Report) -> list[str]:
    terminal = io.StringIO()
    print_report(Console(file=terminal, width=160), report)
    return [to_json(report), to_html(report), to_junit(report), terminal.getvalue()]


KEY = "sk-Private0123456789"


@pytest.mark.parametrize("where", ["body", "stream", "header", "no-http"])
async def test_a_key_that_is_repeated_is_in_no_report(where: str) -> None:
    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = re.findall(rb"authorization: (.*)\r\n", running.received[-1], re.I)
        key = said[0] if said else b""
        answers = {
            "body": http(b'{"error": {"message": "%s"}}' % key, JSON, status="401 No"),
            "stream": http(b"data: %s\n\n" % key, "content-type: text/event-stream"),
            "header": http(b"{}", JSON, "www-authenticate: " + key.decode()),
            "no-http": key + b"\r\n\r\n",
        }
        writer.write(answers[where])
        if where == "no-http":
            writer.close()

    async with raw(repeat) as running:
        only = ["models/list", "chat-stream/chunk-shape", "keys/malformed", "chat/answers"]
        report = await check(Target(running.url, KEY, timeout_s=5), Wishes(chosen(only)))
    assert {r.outcome for r in report.results} == {"failed"}
    assert any(KEY.encode() in request for request in running.received)
    for text in reports(report):
        assert "rivate01234" not in text
    assert scrubbing.KEY in to_json(report)
