"""Faults of the wrapper: each constructor does what it says, and everything else is untouched."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.faults import (
    DONE,
    Exchange,
    Fault,
    Faulty,
    chain,
    drop_fields,
    drop_header,
    edit_body,
    edit_frames,
    edit_json,
    only,
    set_field,
    set_header,
    set_status,
)
from tests.conformance.toy import ToyBackend
from tests.conftest import Running, Setup, served
from tests.engines import StepwiseBackend
from tests.sse import chat_body, connected, events, read_until, request_bytes

CHAT = "/v1/chat/completions"


def rename(answer: Any) -> None:
    answer["object"] = "renamed"


def upside_down(chunks: list[Any]) -> list[Any]:
    return [": a comment", chunks[-1], *chunks[-2::-1], "not JSON"]


def at_the_models(exchange: Exchange) -> None:
    exchange.method, exchange.path, exchange.body = "GET", "/v1/models", b""


def say_bonjour(body: dict[str, Any]) -> None:
    body["messages"][0]["content"] = "Bonjour, café"


FAULTS = [
    Fault("none", "Nothing is wrong."),
    Fault("dropped", "max_tokens is ignored.", request=drop_fields("max_tokens", "nowhere")),
    Fault("set", "Answers end after two tokens.", request=set_field("max_tokens", 2)),
    Fault("body", "Another question is answered.", request=edit_body(say_bonjour)),
    Fault("moved", "Everything lists the models.", request=at_the_models),
    Fault("json", "Objects are misnamed.", response=edit_json(rename)),
    Fault("replaced", "Answers are lists.", response=edit_json(lambda answer: [answer])),
    Fault("refused", "Refusals are misnamed.", response=edit_json(rename, status=400)),
    Fault("frames", "Streams come upside down.", frames=edit_frames(upside_down)),
    Fault("in-place", "Streams have no end mark.", frames=edit_frames(lambda all: [*all][:-1])),
    Fault("status", "All is created.", response=set_status(201)),
    Fault(
        "status-when",
        "Refusals are conflicts.",
        response=set_status(409, when=lambda exchange: exchange.status == 400),
    ),
    Fault(
        "headers",
        "Ids are missing and types are wrong.",
        response=chain(drop_header("X-Request-Id"), set_header("Content-Type", "text/plain")),
    ),
    only("/completions", Fault("only", "Answers are teapots.", response=set_status(418))),
    Fault("deaf", "Clients that leave are not noticed.", shield_disconnect=True),
]


def wrapped(app: Any) -> Faulty:
    return Faulty(app, FAULTS)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    setup = Setup(backend=ToyBackend(), wrap=wrapped)
    with served(tmp_path_factory.mktemp("faulty"), setup) as running:
        running.engine()
        yield running


def ask(faulty: Running, fault: str | None, path: str = CHAT, **fields: Any) -> Any:
    prefix = "" if fault is None else f"/faults/{fault}"
    body = {**chat_body(temperature=0, max_tokens=5), **fields}
    return faulty.client.post(prefix + path, json=body)


def said(response: Any) -> Any:
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [True, False])
def test_without_a_hook_nothing_changes(faulty: Running, stream: bool) -> None:
    plain, same = (ask(faulty, fault, stream=stream) for fault in (None, "none"))
    assert plain.status_code == same.status_code == 200
    assert plain.headers.keys() == same.headers.keys()
    if not stream:
        assert said(plain) == said(same)
        return
    parts = [[chunk["choices"] for chunk in events(r.text)[:-1]] for r in (plain, same)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("path", ["/faults/unknown", "/faults", "/faults/none/nowhere", "/nowhere"])
def test_other_paths_are_not_found(faulty: Running, path: str) -> None:
    response = faulty.client.get(path)
    assert response.status_code == 404
    told = path.removeprefix("/faults/none")
    assert f"GET {told}: no such route" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models/demo", "/v1/models/de%6Do", "/health"])
def test_the_rest_of_the_path_is_kept(faulty: Running, path: str) -> None:
    plain, same = (faulty.client.get(prefix + path) for prefix in ("", "/faults/none"))
    assert plain.status_code == same.status_code == 200
    assert plain.json().keys() == same.json().keys()


def test_request_fields(faulty: Running) -> None:
    tokens = {
        fault: ask(faulty, fault).json()["usage"]["completion_tokens"]
        for fault in (None, "dropped", "set")
    }
    assert tokens[None] == 5
    assert tokens["dropped"] > 5
    assert tokens["set"] == 2
    assert said(ask(faulty, "body")) == "é "


def test_a_body_that_is_no_object_is_left_alone(faulty: Running) -> None:
    for content in (b"[1]", b"{broken"):
        answers = [
            faulty.client.post(prefix + CHAT, content=content).json()
            for prefix in ("", "/faults/set")
        ]
        assert answers[0] == answers[1]


def test_method_and_path(faulty: Running) -> None:
    assert ask(faulty, "moved").json()["data"][0]["id"] == "demo"


def test_edited_json(faulty: Running) -> None:
    assert ask(faulty, "json").json()["object"] == "renamed"
    [answer] = ask(faulty, "replaced").json()
    assert answer["object"] == "chat.completion"
    assert ask(faulty, "refused").json()["object"] == "chat.completion"
    refusal = ask(faulty, "refused", max_tokens=-1)
    assert refusal.status_code == 400
    assert refusal.json()["object"] == "renamed"


def test_lengths_are_corrected(faulty: Running) -> None:
    for fault in ("json", "replaced", "set"):
        response = ask(faulty, fault)
        assert int(response.headers["content-length"]) == len(response.content)


def test_edited_frames(faulty: Running) -> None:
    plain = events(ask(faulty, None, stream=True).text)
    response = ask(faulty, "frames", stream=True)
    assert response.text.startswith(": a comment\n\ndata: [DONE]\n\n")
    assert response.text.endswith("\n\ndata: not JSON\n\n")
    assert "content-length" not in response.headers
    frames = [frame.removeprefix("data: ") for frame in response.text.split("\n\n")[2:-2]]
    turned = [json.loads(frame)["choices"] for frame in reversed(frames)]
    assert turned == [chunk["choices"] for chunk in plain[:-1]]
    assert DONE not in ask(faulty, "in-place", stream=True).text
    assert said(ask(faulty, "frames")) == said(ask(faulty, None))


@pytest.mark.parametrize("stream", [True, False])
def test_status_and_headers(faulty: Running, stream: bool) -> None:
    assert ask(faulty, "status", stream=stream).status_code == 201
    assert ask(faulty, "status-when", stream=stream).status_code == 200
    assert ask(faulty, "status-when", stream=stream, max_tokens=-1).status_code == 409
    plain, changed = (ask(faulty, fault, stream=stream) for fault in (None, "headers"))
    assert changed.headers["content-type"] == "text/plain"
    assert plain.headers.keys() - changed.headers.keys() == {"x-request-id"}
    assert ("[DONE]" in changed.text) == stream


def test_only_some_paths(faulty: Running) -> None:
    assert ask(faulty, "only").status_code == 418
    assert faulty.client.get("/faults/only/v1/models").status_code == 200


def test_two_faults_of_one_id() -> None:
    app: Any = None
    with pytest.raises(AssertionError):
        Faulty(app, [FAULTS[0], FAULTS[0]])


@pytest.mark.parametrize("fault", ["none", "set"])
def test_streams_pass_as_they_come(tmp_path: Path, fault: str) -> None:
    """The first event is there while the engine still holds the second back."""
    with served(tmp_path, Setup(backend=StepwiseBackend(), wrap=wrapped)) as running:
        engine = running.engine()
        path = f"/faults/{fault}{CHAT}"
        with running.client.stream("POST", path, json=chat_body(stream=True)) as response:
            parts = response.iter_text()
            assert "data: " in next(parts)
            assert engine.running == 1
            running.call(engine.go.set)
            assert events("".join(parts))[-1] == DONE


@pytest.mark.parametrize("fault", ["none", "set", "frames", "json"])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_is_noticed(faulty: Running, fault: str, stream: bool) -> None:
    engine = faulty.engine()
    faulty.call(engine.go.clear)
    faulty.call(engine.started.clear)
    with connected(faulty.url) as client:
        client.sendall(request_bytes(f"/faults/{fault}{CHAT}", chat_body(stream=stream)))
        faulty.wait(engine.started)
    faulty.wait(engine.idle)
    faulty.call(engine.go.set)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_is_not_noticed_by_the_deaf(tmp_path: Path, stream: bool) -> None:
    with served(tmp_path, Setup(backend=StepwiseBackend(), wrap=wrapped)) as running:
        engine = running.engine()
        if not stream:
            running.call(engine.go.clear)
        with connected(running.url) as client:
            client.sendall(request_bytes(f"/faults/deaf{CHAT}", chat_body(stream=stream)))
            running.wait(engine.started)
            if stream:
                read_until(client, b"data: ")
        # What the server knows of the connection, it knows before it answers another one.
        assert running.client.get("/health").status_code == 200
        assert engine.running == 1
        running.call(engine.go.set)
        running.wait(engine.idle)
        running.left()
