"""Counting and tokens: the same code as generation, for models that are not loaded too."""

from typing import Any

import httpx
import pytest

from tests.conftest import MODEL, Running, Serve

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"}]
BOTH = {"prompt": "a", "messages": MESSAGES}
PATHS = ["/utils/token_counter", "/tokenize"]


def post(server: Running, path: str, **fields: Any) -> httpx.Response:
    return server.client.post(path, json={"model": MODEL, **fields})


def blamed(response: httpx.Response, param: str) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "BadRequestError")
    assert error["param"] == param
    message: str = error["message"]
    return message


@pytest.mark.parametrize("prompt", ["Grüße", ["Grüße", "a"], [1, 2, 3], [[1, 2], [3]]])
def test_the_count_of_a_prompt_is_its_usage(server: Running, prompt: Any) -> None:
    counted = post(server, PATHS[0], prompt=prompt).json()
    usage = server.complete(prompt, max_tokens=1).json()["usage"]
    assert counted["total_tokens"] == usage["prompt_tokens"]


def test_the_count_of_messages_is_their_usage(server: Running) -> None:
    counted = post(server, PATHS[0], messages=MESSAGES).json()
    usage = server.chat(messages=MESSAGES, max_tokens=1).json()["usage"]
    assert counted == {
        "total_tokens": usage["prompt_tokens"],
        "request_model": MODEL,
        "model_used": MODEL,
        "tokenizer_type": "huggingface_tokenizer",
    }


def test_a_model_that_is_not_loaded_is_counted(serve: Serve) -> None:
    server = serve(models=[{"id": "cold", "aliases": ["nick"]}], eager=())
    counted = post(server, PATHS[0], model="nick", prompt="abc").json()
    assert (counted["total_tokens"], counted["request_model"]) == (3, "nick")
    assert counted["model_used"] == "cold"
    assert post(server, "/tokenize", model="cold", prompt="abc").json()["count"] == 3
    assert post(server, "/detokenize", model="cold", tokens=[97]).json() == {"prompt": "a"}


@pytest.mark.parametrize("policy", ["native", "merge"])
def test_the_policy_of_system_prompts_counts(serve: Serve, policy: str) -> None:
    server = serve(models=[{"id": MODEL, "system_prompt": policy}])
    counted = post(server, PATHS[0], messages=MESSAGES).json()["total_tokens"]
    usage = server.chat(messages=MESSAGES, max_tokens=1).json()["usage"]
    assert counted == usage["prompt_tokens"]


@pytest.mark.parametrize("path", PATHS)
def test_what_generation_would_reject_is_rejected(serve: Serve, path: str) -> None:
    server = serve(models=[{"id": MODEL, "system_prompt": "reject"}])
    response = post(server, path, messages=MESSAGES)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        (BOTH, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"prompt": {"a": 1}}, "prompt"),
    ],
)
def test_one_of_both(server: Running, path: str, fields: dict[str, Any], param: str) -> None:
    blamed(post(server, path, **fields), param)


@pytest.mark.parametrize("path", PATHS)
def test_longer_than_the_context_is_counted(server: Running, path: str) -> None:
    answer = post(server, path, prompt="x" * 5000).json()
    assert answer.get("total_tokens", answer.get("count")) == 5000


@pytest.mark.parametrize("path", [*PATHS, "/detokenize"])
def test_unknown_model(server: Running, path: str) -> None:
    response = post(server, path, model="nope", prompt="a", tokens=[1])
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(f"{path}: Invalid model name passed in model=nope.")


def test_tokenize(server: Running) -> None:
    assert post(server, "/tokenize", prompt="ab", return_token_strs=True).json() == {
        "count": 2,
        "max_model_len": 2048,
        "tokens": [97, 98],
        "token_strs": ["a", "b"],
    }
    assert post(server, "/tokenize", prompt="ab").json()["token_strs"] is None


def test_tokenize_messages(server: Running) -> None:
    answer = post(server, "/tokenize", messages=MESSAGES[1:]).json()
    assert bytes(answer["tokens"]).decode() == "<user>Grüße<assistant>"
    without = post(server, "/tokenize", messages=MESSAGES[1:], add_generation_prompt=False).json()
    assert bytes(without["tokens"]).decode() == "<user>Grüße"


def test_tokenize_runs_no_template_of_the_clients(server: Running) -> None:
    sent = {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": "{{ x }}"}}
    assert "chat_template" in blamed(post(server, "/tokenize", **sent), "chat_template_kwargs")


def test_detokenize_is_the_inverse(server: Running) -> None:
    tokens = post(server, "/tokenize", prompt="Grüße, 世界").json()["tokens"]
    assert post(server, "/detokenize", tokens=tokens).json() == {"prompt": "Grüße, 世界"}
    assert post(server, "/detokenize", tokens=[]).json() == {"prompt": ""}


@pytest.mark.parametrize("tokens", [[256], [-1], ["a"], "abc"])
def test_detokenize_refuses_what_is_no_token(server: Running, tokens: Any) -> None:
    blamed(post(server, "/detokenize", tokens=tokens), "tokens")


def test_detokenize_needs_tokens(server: Running) -> None:
    error = post(server, "/detokenize").json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "tokens")
