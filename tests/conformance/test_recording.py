"""Recordings: what was answered is answered again, and nothing private is in the files."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tenuto.conformance.cases import Case, CaseError, all_cases, selected
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.facts import Facts
from tenuto.conformance.recording import BUNDLED, Recorder, Recording, answer_of
from tenuto.conformance.run import NotRecorded, run_cases
from tenuto.conformance.transport import Server
from tests.conftest import MODEL, Running

GET = Request("GET", "/v1/models")
CHAT = Request("POST", "/v1/chat/completions", {"model": MODEL, "messages": []})
JSON = {"content-type": "application/json"}
FACTS = Facts(model=MODEL)
PRIVATE_KEY = "sk-Secret/+0123456789"
HASH = "0123456789abcdef" * 4


@dataclass
class Canned:
    """Answers with the texts it is given, one after the other."""

    texts: list[str] = field(default_factory=lambda: ["{}"])
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    go: list[asyncio.Event] = field(default_factory=list)

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        text = self.texts.pop(0)
        if self.go:
            await self.go.pop(0).wait()
        return Exchange(request, self.status, self.headers, text, left=leave is not None)

    @asynccontextmanager
    async def one_connection(self) -> AsyncIterator["Canned"]:
        yield self


def recorder(directory: Path, sender: Any, key: str | None = None) -> Recorder:
    return Recorder(sender, directory, "a test", "1.2.3", key)


async def recorded(directory: Path, sender: Any, *requests: Request) -> Recording:
    recording = recorder(directory, sender)
    for request in requests:
        await recording.send(request)
    return Recording.open(recording.save(FACTS))


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


async def test_a_server_is_answered_for(server: Running, tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Grüße"}], "max_tokens": 8}
    requests = {
        "list": GET,
        "chat": Request("POST", "/v1/chat/completions", body),
        "stream": Request("POST", "/v1/chat/completions", {**body, "stream": True}),
        "refused": Request("POST", "/v1/chat/completions", {**body, "temperature": -1}),
        "no JSON": Request("POST", "/v1/completions", raw='{"\xff'),
        "no key": Request("GET", "/metrics", auth="none", headers={"X-Own": "yes"}),
    }
    live = Server(server.url)
    recording = recorder(tmp_path / "made" / "here", live)
    originals = {name: await recording.send(request) for name, request in requests.items()}
    await live.close()
    again = Recording.open(recording.save(FACTS))
    assert again.about.model == MODEL
    assert (again.about.origin, again.about.kit_version) == ("a test", "1.2.3")
    for name, request in requests.items():
        answer, original = await again.send(request), originals[name]
        assert answer.status == original.status, name
        assert answer.headers["content-type"] == original.headers["content-type"]
    stream = await again.send(requests["stream"])
    assert stream.text == originals["stream"].text
    assert (await again.send(requests["chat"])).json == originals["chat"].json


async def test_cases_name_their_requests(server: Running, tmp_path: Path) -> None:
    cases = selected(all_cases(), ["models/one", "chat/n-choices"])
    live = Server(server.url)
    recording = recorder(tmp_path, live)
    await recording.send(Request("GET", "/health"))
    ran = await run_cases(cases, recording, FACTS, 2, lambda result: None)
    await live.close()
    again = Recording.open(recording.save(FACTS, cases))
    assert {*again.requests} == {"models/one:answer", "chat/n-choices:answer", "GET /health"}
    assert (tmp_path / "models_one_answer.json").is_file()
    assert again.facts == FACTS
    replayed = await run_cases(cases, again, again.facts, 2, lambda result: None)
    assert [r.outcome for r in replayed] == [r.outcome for r in ran] == ["passed", "passed"]


def test_a_case_whose_need_is_not_met_names_nothing(tmp_path: Path) -> None:
    case: Case = next(case for case in all_cases() if "rejecting_model" in case.needs)
    recording = recorder(tmp_path, Canned())
    assert Recording.open(recording.save(FACTS, [case])).requests == {}


async def test_several_answers_come_in_their_order(tmp_path: Path) -> None:
    recording = await recorded(tmp_path, Canned(["1", "2", "3"]), GET, GET, CHAT)
    assert [(await recording.send(GET)).text for _ in range(3)] == ["1", "2", "2"]
    assert (await recording.send(CHAT)).text == "3"
    assert recording.first("GET /v1/models").text == "1"


async def test_answers_are_in_the_order_of_the_requests(tmp_path: Path) -> None:
    events = [asyncio.Event(), asyncio.Event()]
    recording = recorder(tmp_path, Canned(["1", "2"], go=[*events]))
    tasks = [asyncio.create_task(recording.send(GET)) for _ in range(2)]
    events[1].set()
    await tasks[1]
    events[0].set()
    await tasks[0]
    again = Recording.open(recording.save(FACTS))
    assert [(await again.send(GET)).text for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize(
    "other",
    [
        Request("PUT", "/v1/models"),
        Request("GET", "/models"),
        Request("GET", "/v1/models", {"a": 1}),
        Request("GET", "/v1/models", raw="{}"),
        Request("GET", "/v1/models", auth="none"),
        Request("GET", "/v1/models", headers={"origin": "x"}),
        Request("GET", "/v1/models", until="idle"),
    ],
)
async def test_another_request_is_not_recorded(tmp_path: Path, other: Request) -> None:
    recording = await recorded(tmp_path, Canned(), GET)
    with pytest.raises(NotRecorded, match="a test"):
        await recording.send(other)


async def test_the_order_of_fields_makes_no_other_request(tmp_path: Path) -> None:
    recording = await recorded(tmp_path, Canned(), Request("POST", "/x", {"a": 1, "b": 2}))
    assert (await recording.send(Request("POST", "/x", {"b": 2, "a": 1}))).status == 200


async def test_who_left_and_who_waited_is_kept(tmp_path: Path) -> None:
    recording = recorder(tmp_path, Canned(["", "x 1"]))
    await recording.send(CHAT, asyncio.Event())
    busy = Request("GET", "/metrics", until="busy", within_s=2)
    await recording.send(busy)
    again = Recording.open(recording.save(FACTS))
    assert (await again.send(CHAT)).left
    assert not (await again.send(CHAT)).untried
    assert (await again.send(busy)).text == "x 1"
    assert again.requests["GET /metrics"] == busy


async def test_what_the_checks_read_is_kept(tmp_path: Path) -> None:
    """When a stream began, over which connection it came, and whether it was asked for at all."""
    streamed = Request("POST", "/v1/completions", {"stream": True})
    kept = Exchange(streamed, 200, text="data: {}\n\n", elapsed_s=2.5, first_s=0.25, connection=7)
    limited = Exchange(GET, 429, text="{}", elapsed_s=9, untried=True)

    class Fixed(Canned):
        async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
            return limited if request == GET else kept

    recording = await recorded(tmp_path, Fixed(), streamed, GET)
    assert await recording.send(streamed) == kept
    assert await recording.send(GET) == replace(limited, elapsed_s=0)


async def test_one_connection_is_recorded_too(tmp_path: Path) -> None:
    recording = recorder(tmp_path, Canned(["1"]))
    async with recording.one_connection() as one:
        await one.send(GET)
    again = Recording.open(recording.save(FACTS))
    async with again.one_connection() as one:
        assert (await one.send(GET)).connection == (await again.send(GET)).connection


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2.5, null, true, "é"]}',
        "data: {}\n\ndata: [DONE]\n\n",
        "",
        '{"half": "\\ud800"}',
        "[NaN]",
        "[" * 100_000,
    ],
)
async def test_any_answer_can_be_kept(tmp_path: Path, text: str) -> None:
    recording = await recorded(tmp_path, Canned([text]), GET)
    kept = (await recording.send(GET)).text
    assert kept == text or json.loads(kept) == json.loads(text)


async def test_names_of_files_stay_apart(tmp_path: Path) -> None:
    paths = ["/a/b", "/a_b", "/A/B", "/../../x", "/recording"]
    requests = [Request("GET", path) for path in paths]
    recording = await recorded(tmp_path / "r", Canned(["{}"] * 5), *requests)
    files = files_in(recording.directory)
    assert len({name.casefold() for name in files}) == 6
    assert files_in(tmp_path) == ["r"]
    assert len(recording.requests) == 5


async def test_a_recording_may_be_replaced(tmp_path: Path) -> None:
    await recorded(tmp_path / "r", Canned(["1", "2"]), GET, CHAT)
    again = await recorded(tmp_path / "r", Canned(["3"]), GET)
    assert [*again.requests] == ["GET /v1/models"]
    assert files_in(tmp_path) == ["r"]


@pytest.mark.parametrize("other", ["notes.txt", "data.json", ".git"])
def test_nothing_else_is_replaced(tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_text("mine")
    if other != "data.json":
        (tmp_path / "recording.json").write_text("{}")
    with pytest.raises(CaseError, match="not empty"):
        recorder(tmp_path, Canned())
    assert (tmp_path / other).read_text() == "mine"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "r").touch()
    with pytest.raises(CaseError, match="no directory"):
        recorder(tmp_path / "r", Canned())


async def test_a_recording_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    await recorded(tmp_path / "r", Canned(["1"]), GET)
    broken = recorder(tmp_path / "r", Canned(["2"]))
    await broken.send(Request("GET", "/\ud800"))
    with pytest.raises(UnicodeEncodeError):
        broken.save(FACTS)
    assert (await Recording.open(tmp_path / "r").send(GET)).text == "1"
    assert files_in(tmp_path) == ["r"]


def spoilt(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def spoil(text: str) -> str:
        entry = json.loads(text)
        change(entry)
        return json.dumps(entry)

    return spoil


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("GET_v1_models.json", lambda text: text[:-9]),
        ("GET_v1_models.json", lambda text: "[]"),
        ("GET_v1_models.json", spoilt(lambda entry: entry.update(answers=[]))),
        ("GET_v1_models.json", spoilt(lambda entry: entry.update(more=1))),
        ("GET_v1_models.json", spoilt(lambda entry: entry["request"].update(auth="Bearer x"))),
        ("GET_v1_models.json", spoilt(lambda entry: entry["request"].update(more=1))),
        ("GET_v1_models.json", spoilt(lambda entry: entry["request"].pop("path"))),
        ("copy.json", lambda text: text),
        ("recording.json", spoilt(lambda about: about.pop("model"))),
        ("recording.json", lambda text: ""),
    ],
)
async def test_a_broken_file_is_named(
    tmp_path: Path, file: str, spoil: Callable[[str], str]
) -> None:
    await recorded(tmp_path, Canned(), GET)
    source = tmp_path / ("GET_v1_models.json" if file == "copy.json" else file)
    (tmp_path / file).write_text(spoil(source.read_text()))
    with pytest.raises(CaseError, match=file):
        Recording.open(tmp_path)


def test_no_recording_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"recording\.json"):
        Recording.open(tmp_path / "nowhere")


EVERYWHERE = [
    (f"for {PRIVATE_KEY}.", "for sk-SCRUBBED."),
    ("sk-abcDEF12345678 and sk-...wxyz", "sk-SCRUBBED and sk-..."),
    ("ask an.owner+x@mail.example.org!", "ask <e-mail>!"),
]
UNLESS_GENERATED = [
    ("Authorization: bearer abc.def-1=", "Authorization: bearer <scrubbed>"),
    (f"Key Hash (Token) ={HASH}", "Key Hash (Token) =<hash>"),
    ("at 10.0.0.12:8000", "at <address>:8000"),
    ("at [fd00::a1]:8000 or ::1", "at [<address>]:8000 or <address>"),
    ('File "/home/ada/x.py", line 3', 'File "/<path>", line 3'),
    ("/root/.venv/lib/site-packages/a.py", "/<path>/site-packages"),
    ("C:\\Users\\Ada\\x and /Users/ada", "/<path> and /<path>"),
]
KEPT = [
    "1.106.2 at 12:30:45, std::vector, task-force, risk-averse",
    "Bearer `, https://docs.litellm.ai/docs/home",
    "sk-this-key-was-never-handed-out",
]


def written(text: str, request: Request = CHAT, status: int = 400, **more: Any) -> Any:
    exchange = Exchange(request, status, {**JSON, **more.pop("headers", {})}, text, **more)
    return answer_of(exchange, PRIVATE_KEY)


@pytest.mark.parametrize(("text", "scrubbed"), EVERYWHERE + UNLESS_GENERATED)
def test_errors_hold_nothing_private(text: str, scrubbed: str) -> None:
    error = {"error": {"message": text, text: [text]}}
    assert written(json.dumps(error))["body"] == {
        "error": {"message": scrubbed, scrubbed: [scrubbed]}
    }
    assert written(text, failure=text) | {"headers": {}} == {
        "status": 400,
        "headers": {},
        "text": scrubbed,
        "failure": scrubbed,
    }


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_private_stays(text: str) -> None:
    assert written(text)["text"] == text


@pytest.mark.parametrize(("text", "scrubbed"), EVERYWHERE)
def test_generated_text_holds_no_key_and_no_address_of_a_person(text: str, scrubbed: str) -> None:
    body = {"choices": [{"message": {"content": text}}]}
    assert written(json.dumps(body), status=200)["body"] == {
        "choices": [{"message": {"content": scrubbed}}]
    }
    assert written(f"data: {text}\n\n", status=200)["text"] == f"data: {scrubbed}\n\n"


@pytest.mark.parametrize(("text", "scrubbed"), UNLESS_GENERATED)
def test_generated_text_is_otherwise_the_models(text: str, scrubbed: str) -> None:
    assert written(text, status=200)["text"] == text
    assert written(text, GET, 200)["text"] == scrubbed
    failed = f'data: {{"error": 1}}\n\n{text}'
    assert scrubbed in written(failed, status=200)["text"]


@pytest.mark.parametrize("path", ["/v1/model/info", "/model/info", "/metrics"])
def test_what_is_meant_for_the_owner_names_no_host(path: str) -> None:
    text = "at http://gpu7.own.test:8000/v1, HTTPS://own.test and www.own.test"
    scrubbed = "at http://<host>/v1, HTTPS://<host> and www.own.test"
    assert written(text, Request("GET", path), 200)["text"] == scrubbed
    assert "gpu7.own.test" in written(text, GET, 200)["text"]


def test_only_known_headers_are_kept() -> None:
    kept = {
        "access-control-allow-origin": "*",
        "cache-control": "no-cache",
        "retry-after": "1",
        "x-request-id": "req-1",
        "x-ratelimit-limit": PRIVATE_KEY,
    }
    others = {"server": "x", "set-cookie": "x", "x-litellm-call-id": "x", "date": "x"}
    assert written("", headers={**kept, **others})["headers"] == {
        **kept,
        **JSON,
        "x-ratelimit-limit": "sk-SCRUBBED",
    }


@pytest.mark.parametrize("key", [PRIVATE_KEY, "of/another+kind-0123456789"])
@pytest.mark.parametrize("form", ["{}", "escaped", "quoted"])
async def test_the_key_is_in_no_file(tmp_path: Path, key: str, form: str) -> None:
    """However a server repeats it, and whatever kind of key it is."""
    repeated = {"escaped": key.replace("/", "\\/"), "quoted": quote(key, safe="")}.get(form, key)
    texts = [f'{{"{repeated}": "x{repeated}x"}}', f"data: {repeated}\n\n", repeated]
    sender = Canned(texts, headers={"x-ratelimit-limit": repeated, "location": repeated})
    recording = Recorder(sender, tmp_path, f"for {key}", "1", key)
    for request in (GET, CHAT, Request("GET", "/x", auth="malformed")):
        await recording.send(request)
    recording.save(FACTS)
    assert len(files_in(tmp_path)) == 4
    assert [name for name in files_in(tmp_path) if "0123456789" in read(tmp_path / name)] == []


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    assert PRIVATE_KEY not in repr(recorder(tmp_path, Canned(), PRIVATE_KEY))


def test_the_wrong_key_is_the_transports() -> None:
    for auth in ("wrong", "malformed"):
        headers = Server("http://x")._headers(Request("GET", "/", auth=auth))
        assert written(headers["authorization"], GET)["text"].endswith(
            "sk-this-key-was-never-handed-out"
        ), auth


def test_the_hosted_stack_is_bundled() -> None:
    recording = Recording.open(BUNDLED / "hosted-stack")
    assert len(recording.requests) == 54
    assert recording.facts == Facts(model=recording.about.model)
    assert recording.requests["comp_toolong_prompt"].body["prompt"] == "hello world " * 3000
    names = {name for n in recording.requests for name in recording.first(n).headers}
    assert names == {"content-type", "x-litellm-version"}
    for name in recording.requests:
        exchange = recording.first(name)
        answer = answer_of(exchange, None)
        assert answer.get("text", answer.get("body")) == (
            exchange.text if "text" in answer else exchange.json
        ), name
