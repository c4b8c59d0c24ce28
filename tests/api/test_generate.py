"""The two endpoints over the scripted engine, through a real uvicorn."""

from typing import Any

import pytest

from tenuto.engine.fake import FakeBackend
from tenuto.engine.types import Prompt, Sampling
from tests.conftest import MODEL, Running, Serve
from tests.sse import choices_of, events

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
# The scripted engine's raw log-probabilities rank its first four candidates so.
RANKING = [1, 3, 0, 2]


def ask(server: Running, kind: str, **fields: Any) -> Any:
    return server.chat(**fields) if kind == "chat" else server.complete(**fields)


def texts(kind: str, body: Any) -> list[str]:
    return [c["message"]["content"] if kind == "chat" else c["text"] for c in body["choices"]]


def error_of(response: Any) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert error["code"] == str(response.status_code)
    return response.status_code, error["type"], error["param"]


def test_chat_answers(server: Running) -> None:
    body = server.chat(n=2, max_tokens=7).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["reply 0", "reply 1"]
    assert body["usage"]["completion_tokens"] == 14
    assert body["model"] == MODEL
    assert body["id"].startswith("chatcmpl-")


def test_completion_answers(server: Running) -> None:
    response = server.complete("abc", max_tokens=7)
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert texts("completion", body) == ["reply 0"]
    assert body["id"].startswith("cmpl-")
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 7,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stop_string_ends_the_answer_and_is_named(server: Running, kind: str) -> None:
    body = ask(server, kind, stop=["to", " 0"]).json()
    assert texts(kind, body) == ["reply"]
    choice = body["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " 0")


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_the_seed_reaches_the_engine(server: Running, kind: str) -> None:
    first, second = (ask(server, kind, seed=seed, max_tokens=60).json() for seed in (5, 6))
    assert texts(kind, first)[0].endswith("seed 5")
    assert texts(kind, second)[0].endswith("seed 6")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_best_of_returns_the_most_likely_first(server: Running, kind: str, stream: bool) -> None:
    fields = {"n": 2, "best_of": 4, "max_tokens": 7, "stream": stream}
    response = ask(server, kind, **fields)
    assert server.engine().generated[-1].n == 4
    if stream:
        found = [said(kind, choices_of(events(response.text), i)) for i in (0, 1)]
    else:
        body = response.json()
        found = texts(kind, body)
        assert [choice["index"] for choice in body["choices"]] == [0, 1]
        assert body["usage"]["completion_tokens"] == 14
        assert body["choices"][0]["logprobs"] is None
    assert found == [f"reply {candidate}" for candidate in RANKING[:2]]


def said(kind: str, chunks: list[Any]) -> str:
    if kind == "chat":
        return "".join(chunk["delta"].get("content", "") for chunk in chunks)
    return "".join(chunk["text"] for chunk in chunks)


def test_streamed_best_of_counts_the_returned_choices(server: Running) -> None:
    response = server.chat(
        n=1, best_of=4, max_tokens=7, stream=True, stream_options={"include_usage": True}
    )
    stream = events(response.text)
    assert stream[-2]["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_best_of_equal_to_n_keeps_the_order(server: Running, kind: str) -> None:
    body = ask(server, kind, n=4, best_of=4, max_tokens=7).json()
    assert texts(kind, body) == [f"reply {i}" for i in range(4)]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_best_of_at_temperature_0_counts_as_n(server: Running, kind: str) -> None:
    body = ask(server, kind, best_of=4, temperature=0, max_tokens=7).json()
    assert texts(kind, body) == ["reply 0"]
    assert server.engine().generated[-1].n == 1


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 2049}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"detokenize": False, "stop": "a"}, "detokenize"),
    ],
)
def test_bad_requests_reach_no_engine(
    server: Running, kind: str, fields: dict[str, Any], param: str
) -> None:
    before = len(server.engine().generated)
    assert error_of(ask(server, kind, **fields)) == (400, "BadRequestError", param)
    assert len(server.engine().generated) == before


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_without_detokenizing_there_are_ids_and_no_text(server: Running, kind: str) -> None:
    logprobs: Any = True if kind == "chat" else 0
    body = ask(server, kind, detokenize=False, max_tokens=3, logprobs=logprobs).json()
    choice = body["choices"][0]
    assert texts(kind, body) == [""]
    assert choice["token_ids"] == list(b"rep")
    if kind == "chat":
        entry = choice["logprobs"]["content"][0]
        assert (entry["token"], entry["bytes"]) == (f"token_id:{ord('r')}", None)
    else:
        assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in b"rep"]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_without_detokenizing_a_stream_carries_ids(server: Running, kind: str) -> None:
    response = ask(server, kind, detokenize=False, max_tokens=3, stream=True)
    chunks = choices_of(events(response.text))
    assert said(kind, chunks) == ""
    assert [i for chunk in chunks for i in chunk.get("token_ids", [])] == list(b"rep")


@pytest.mark.parametrize(
    ("prompt", "count"), [(["a", "bc"], 3), ([[1, 2], [3]], 3), ([1, 2, 3], 3), ("abc", 3)]
)
def test_batches_number_the_choices_by_prompt(server: Running, prompt: Any, count: int) -> None:
    body = server.complete(prompt, n=2, max_tokens=100).json()
    batch = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * batch))
    assert [text[:7] for text in texts("completion", body)] == ["reply 0", "reply 1"] * batch
    assert body["usage"]["prompt_tokens"] == count


def test_streamed_batch(server: Running) -> None:
    stream = events(server.complete(["a", "bc"], max_tokens=20, stream=True).text)
    assert [said("completion", choices_of(stream, i)) for i in (0, 1)] == [
        "reply 0 to 1 tokens,",
        "reply 0 to 2 tokens,",
    ]
    assert stream[-1] == "[DONE]"


@pytest.mark.parametrize("prompt", ["abc", list(b"abc")], ids=["text", "ids"])
@pytest.mark.parametrize("stream", [False, True])
def test_echo(server: Running, prompt: Any, stream: bool) -> None:
    response = server.complete(prompt, echo=True, max_tokens=5, stream=stream)
    if stream:
        assert said("completion", choices_of(events(response.text))) == "abcreply"
    else:
        assert texts("completion", response.json()) == ["abcreply"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_of_nothing_answers_with_the_prompt(server: Running, stream: bool) -> None:
    response = server.complete("abc", echo=True, max_tokens=0, stream=stream)
    if stream:
        assert said("completion", choices_of(events(response.text))) == "abc"
    else:
        body = response.json()
        assert texts("completion", body) == ["abc"]
        assert body["usage"]["completion_tokens"] == 0


def test_max_tokens_left_out(server: Running) -> None:
    assert server.complete("abc").json()["usage"]["completion_tokens"] == 16
    prompt_tokens = server.chat().json()["usage"]["prompt_tokens"]
    assert server.engine().generated[-1].max_tokens == 2048 - prompt_tokens


def test_max_tokens_is_clamped_to_the_context(server: Running) -> None:
    server.complete("x" * 2000, max_tokens=2048)
    assert server.engine().generated[-1].max_tokens == 48


@pytest.mark.parametrize("length", [2048, 2049, 5000])
@pytest.mark.parametrize(("kind", "param"), [("chat", "messages"), ("completion", "prompt")])
def test_a_prompt_that_leaves_no_room(own: Running, kind: str, param: str, length: int) -> None:
    content: dict[str, Any] = {"content" if kind == "chat" else "prompt": "x" * length}
    response = ask(own, kind, **content)
    assert error_of(response) == (400, "BadRequestError", param)
    assert "2048" in response.json()["error"]["message"]
    own.left()


REJECTING = [{"id": "strict", "system_prompt": "reject"}, {"id": "soft", "system_prompt": "merge"}]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_rejected_system_prompt(serve: Serve, role: str) -> None:
    server = serve(models=REJECTING, eager=("strict",))
    messages = [{**SYSTEM[0], "role": role}, SYSTEM[1]]
    response = server.chat(model="strict", messages=messages)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"] == {
        "message": "litellm.APIError: APIError: OpenAIException - Internal Server Error\n"
        "Received Model Group=strict\nAvailable Model Group Fallbacks=None",
        "type": None,
        "param": None,
        "code": "500",
    }
    assert server.chat(model="strict").status_code == 200


def repeat(prompt: Prompt, sampling: Sampling, index: int) -> str:
    return prompt.text or ""


def test_merged_system_prompt(serve: Serve) -> None:
    backend = FakeBackend(reply=repeat)
    server = serve(models=REJECTING, eager=("soft",), backend=backend)
    body = server.chat(model="soft", messages=SYSTEM).json()
    assert texts("chat", body) == ["<user>Be brief.\n\nHi<assistant>"]


def test_native_system_prompt(serve: Serve) -> None:
    backend = FakeBackend(reply=repeat)
    body = serve(backend=backend).chat(messages=SYSTEM).json()
    assert texts("chat", body) == ["<system>Be brief.<user>Hi<assistant>"]


@pytest.mark.usefixtures("quick_restarts")
@pytest.mark.parametrize("eager", [(), (MODEL,)], ids=["on demand", "eager"])
def test_a_model_that_does_not_start(serve: Serve, eager: tuple[str, ...]) -> None:
    server = serve(backend=FakeBackend(fails=frozenset({MODEL})), eager=eager)
    response = server.chat()
    assert error_of(response) == (503, "ServiceUnavailableError", None)
    assert "has failed" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    server.left()


@pytest.mark.parametrize("route", ["/chat/completions", "/completions"])
def test_an_unknown_model_is_worded_as_recorded(server: Running, route: str) -> None:
    response = server.client.post(f"/v1{route}", json={"model": "no", "messages": [], "prompt": ""})
    assert error_of(response) == (400, "invalid_request_error", None)
    assert response.json()["error"]["message"] == (
        f"{route}: Invalid model name passed in model=no. "
        "Call `/v1/models` to view available models for your key."
    )


def test_a_model_that_is_not_on_this_host(
    serve: Serve, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    server = serve(models=[{"id": MODEL}, {"id": "far", "source": "owner/far"}])
    response = server.chat(model="far")
    assert error_of(response) == (400, "invalid_request_error", None)
    message = response.json()["error"]["message"]
    assert message.startswith("/chat/completions: Invalid model name passed in model=far.")
    assert "`tenuto models pull far`" in message
    assert str(tmp_path) not in message


def test_the_answer_names_the_model_that_was_asked_for(serve: Serve) -> None:
    server = serve(models=[{"id": MODEL, "aliases": ["nick/name"]}])
    assert server.chat(model="nick/name").json()["model"] == "nick/name"
    chunk = events(server.chat(model="nick/name", stream=True).text)[0]
    assert chunk["model"] == "nick/name"
