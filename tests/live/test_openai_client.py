"""The `openai` client against a real server: what its users call, and which exceptions they get."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.live.conftest import MODEL, LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS, COLOURS, HELLO

pytestmark = pytest.mark.live

KEY = "sk-live-test"
USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
COLOURFUL: list[ChatCompletionMessageParam] = [{"role": "user", "content": COLOURS}]
WITH_SYSTEM: list[ChatCompletionMessageParam] = [{"role": "system", "content": "Be brief."}, *USER]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that wants a key, without a model loaded: it starts in a second."""
    directory = tmp_path_factory.mktemp("keyed")
    registry = write_registry(directory / "registry.yaml", [{"id": MODEL}])
    with launched(
        directory, "--registry", str(registry), "--models", "", environment={"TENUTO_API_KEYS": KEY}
    ) as server:
        yield server


def test_models_are_listed_and_found(api: openai.OpenAI) -> None:
    ids = [model.id for model in api.models.list()]
    assert ids == [MODEL, "owner/second", "rejecting", "broken"]
    for model_id in ids:
        card = api.models.retrieve(model_id)
        assert (card.id, card.object, card.owned_by) == (model_id, "model", "openai")


def test_chat(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model=MODEL, messages=USER, temperature=0)
    [choice] = answer.choices
    assert choice.message.content == ANSWERS[HELLO]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_with_n_stop_and_logprobs(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(
        model="demo", messages=COLOURFUL, n=3, stop=[","], seed=2, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert not any("," in (choice.message.content or ",") for choice in answer.choices)
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_chat_streams(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model=MODEL,
        messages=USER,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    said = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(said) == ANSWERS[HELLO]
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert last.usage is not None
    assert last.usage.completion_tokens > len(ANSWERS[HELLO]) / 10


def test_chat_stream_helper(api: openai.OpenAI) -> None:
    with api.chat.completions.stream(model=MODEL, messages=USER, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == ANSWERS[HELLO]


def test_completions(api: openai.OpenAI) -> None:
    answer = api.completions.create(model=MODEL, prompt=[HELLO, COLOURS], temperature=0, stop=".")
    texts = [f"\n{ANSWERS[prompt].partition('.')[0]}" for prompt in (HELLO, COLOURS)]
    assert all(
        text.startswith(choice.text) and choice.text
        for text, choice in zip(texts, answer.choices, strict=True)
    )


def test_completions_with_n_and_best_of(api: openai.OpenAI) -> None:
    answer = api.completions.create(model=MODEL, prompt=COLOURS, n=2, best_of=4, seed=2, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.logprobs and choice.logprobs.tokens for choice in answer.choices)


def test_completions_stream(api: openai.OpenAI) -> None:
    stream = api.completions.create(
        model=MODEL, prompt=HELLO, temperature=0, max_tokens=100, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == f"\n{ANSWERS[HELLO]}"


def test_the_documentations_extras_go_through_extra_body(api: openai.OpenAI) -> None:
    extras = {"top_k": 1, "repetition_penalty": 1.0, "min_p": 0.0, "min_tokens": 1}
    answer = api.chat.completions.create(
        model=MODEL, messages=COLOURFUL, temperature=1.5, extra_body=extras
    )
    assert answer.choices[0].message.content == ANSWERS[COLOURS]


def test_a_request_without_a_right_key(keyed: LiveServer) -> None:
    with (
        client_of(keyed, "sk-wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.type == "token_not_found_in_db"
    assert "sk-wrong" not in str(caught.value)
    with client_of(keyed, KEY) as client:
        assert [model.id for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize(
    ("expected", "param", "call"),
    [
        (openai.BadRequestError, "temperature", lambda api: chat(api, temperature=3)),
        (openai.BadRequestError, "n", lambda api: chat(api, temperature=0, n=2)),
        (openai.BadRequestError, None, lambda api: chat(api, model="nobody")),
        (openai.NotFoundError, "model", lambda api: api.models.retrieve("nobody")),
        (openai.NotFoundError, None, lambda api: api.images.generate(prompt="a cat")),
        (openai.InternalServerError, None, lambda api: chat(api, model="broken")),
    ],
    ids=["bad-value", "contradiction", "unknown-model", "no-model", "no-route", "unavailable"],
)
def test_errors_come_as_the_clients_classes(
    api: openai.OpenAI,
    expected: type[openai.APIStatusError],
    param: str | None,
    call: Callable[[openai.OpenAI], Any],
) -> None:
    with pytest.raises(expected) as caught:
        call(api)
    assert type(caught.value) is expected
    assert caught.value.param == param
    assert caught.value.code == str(caught.value.status_code)


def test_a_refused_stream_raises_at_once(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(api, stream=True, top_p=2)


def test_a_rejected_system_prompt_is_not_retried(live: LiveServer) -> None:
    """The client would retry any 500 that does not forbid it."""
    sent: list[str] = []
    counting = httpx.Client(event_hooks={"request": [lambda request: sent.append(request.method)]})
    with (
        client_of(live, "none", max_retries=1, http_client=counting) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        chat(client, model="rejecting", messages=WITH_SYSTEM)
    assert caught.value.status_code == 500
    assert "Received Model Group=rejecting" in str(caught.value)
    assert sent == ["POST"]


def chat(api: openai.OpenAI, **fields: Any) -> Any:
    return api.chat.completions.create(**{"model": MODEL, "messages": USER, **fields})


def client_of(server: LiveServer, key: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, **options})
