"""The token counter, tokenize and detokenize, against what the endpoints themselves count."""

from typing import Any

import httpx
import pytest

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, GREETINGS
from tests.live.ways import CHAT, COMPLETIONS

pytestmark = pytest.mark.live

SECOND, UNLOADED = "owner/second", "rejecting"
TEXTS = [
    "Hello!",
    "a",
    " ",
    "\n",
    "\t\t  two  spaces ",
    "What is Tenuto?\n",
    "CamelCase snake_case kebab-case",
    "1234567890 3.14159 1e-9",
    "def f(x):\n    return x ** 2\n",
    '{"json": [1, null, "two"]}',
    "Grüß Gott, ¡olá!",
    "你好世界",
    "こんにちは",
    "привет, мир",
    "🎼🌍👋🏽👩\u200d👩\u200d👧",
    "e\u0301 is not é",
    "\u200b\u00a0\ufeff",
    "<|eot_id|>",
    "<|begin_of_text|>twice",
    "<|start_header_id|>system<|end_header_id|>\n\nfake<|eot_id|>",
    "<|not_special|> <think>",
    "long " * 400,
    ANSWERS[GREETINGS] * 10,
]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": ""}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Hello!"}],
    [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! 👋🏽"},
        {"role": "user", "content": "你好"},
    ],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}],
        }
    ],
    [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Well"}],
]
SYSTEM_FIRST = CONVERSATIONS[1]


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _named(value: object) -> str:
    return ascii(value)[:40]


@pytest.mark.parametrize("model", [MODEL, SECOND])
@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_a_prompt_counts_as_it_is_used(live: LiveServer, model: str, text: str) -> None:
    answer = _post(live, COMPLETIONS.path, model, prompt=text, max_tokens=1)
    assert _count(live, model, prompt=text) == answer["usage"]["prompt_tokens"]
    assert _count(live, UNLOADED, prompt=text) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("messages", CONVERSATIONS + [_user(t) for t in TEXTS], ids=_named)
def test_messages_count_as_they_are_used(live: LiveServer, messages: list[dict[str, Any]]) -> None:
    answer = _post(live, CHAT.path, MODEL, messages=messages, max_tokens=1)
    assert _count(live, MODEL, messages=messages) == answer["usage"]["prompt_tokens"]
    if messages[0]["role"] == "user":
        assert _count(live, UNLOADED, messages=messages) == answer["usage"]["prompt_tokens"]


def test_a_batch_counts_as_it_is_used(live: LiveServer) -> None:
    answer = _post(live, COMPLETIONS.path, MODEL, prompt=TEXTS, max_tokens=1)
    assert _count(live, MODEL, prompt=TEXTS) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("model", ["demo", SECOND, UNLOADED])
def test_the_counter_names_the_model(live: LiveServer, model: str) -> None:
    assert _post(live, "/utils/token_counter", model, prompt="Hello!") == {
        "total_tokens": _count(live, MODEL, prompt="Hello!"),
        "request_model": model,
        "model_used": {"demo": MODEL}.get(model, model),
        "tokenizer_type": "huggingface_tokenizer",
    }


def test_a_prompt_longer_than_the_context_is_counted(live: LiveServer) -> None:
    assert _count(live, SECOND, prompt="long " * 9000) > 8192


@pytest.mark.parametrize("model", [MODEL, UNLOADED])
@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_tokens_decode_to_the_text(live: LiveServer, model: str, text: str) -> None:
    tokens = _post(live, "/tokenize", model, prompt=text, add_special_tokens=False)
    assert tokens["count"] == len(tokens["tokens"])
    assert _post(live, "/detokenize", model, tokens=tokens["tokens"])["prompt"] == text


def test_tokenize_is_what_the_engine_sees(live: LiveServer) -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    for path, way, prompt in (
        ("/tokenize", CHAT, {"messages": messages}),
        ("/tokenize", COMPLETIONS, {"prompt": "Hello!"}),
    ):
        tokens = _post(live, path, MODEL, **prompt, return_token_strs=True)
        answer = _post(live, way.path, MODEL, **prompt, max_tokens=1, return_token_ids=True)
        holder = answer if way == CHAT else answer["choices"][0]
        assert tokens["tokens"] == holder["prompt_token_ids"]
        assert tokens["token_strs"][0] == "<|begin_of_text|>"
        assert tokens["max_model_len"] == 8192


@pytest.mark.parametrize("way", [CHAT, COMPLETIONS], ids=str)
def test_a_model_that_does_not_start_does_not_answer(live: LiveServer, way: Any) -> None:
    response = live.client.post(way.path, json={"model": "broken", **way.body("Hello!")})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["type"] == "ServiceUnavailableError"


@pytest.mark.parametrize("path", [CHAT.path, "/utils/token_counter", "/tokenize"])
def test_a_rejected_system_prompt_is_the_documented_error(live: LiveServer, path: str) -> None:
    response = live.client.post(path, json={"model": UNLOADED, "messages": SYSTEM_FIRST})
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json() == {
        "error": {
            "message": "litellm.APIError: APIError: OpenAIException - Internal Server Error\n"
            f"Received Model Group={UNLOADED}\nAvailable Model Group Fallbacks=None",
            "type": None,
            "param": None,
            "code": "500",
        }
    }


def _post(live: LiveServer, path: str, model: str, **fields: Any) -> dict[str, Any]:
    response: httpx.Response = live.client.post(path, json={"model": model, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _count(live: LiveServer, model: str, **fields: Any) -> int:
    total: int = _post(live, "/utils/token_counter", model, **fields)["total_tokens"]
    return total
