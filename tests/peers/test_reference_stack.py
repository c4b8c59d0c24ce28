"""The reference stack is what the hosted API was recorded to be, and leaves nothing behind."""

import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from scripts.benchmarks.processes import command, descendants
from tenuto.conformance.recording import BUNDLED, Recording
from tests.live.conftest import MODEL
from tests.live.knowledge import ANSWERS, HELLO
from tests.peers.conftest import INSTALL_AND_START_S, Stack, launched
from tests.sse import DONE, events

pytestmark = [pytest.mark.peers, pytest.mark.timeout(INSTALL_AND_START_S)]

RECORDED = Recording.open(BUNDLED / "hosted-stack")
ALIAS = "Midnight-Miqu-70B-v1.5"


@pytest.mark.parametrize("model", [MODEL, ALIAS])
def test_a_chat_comes_through_both_servers(stack: Stack, model: str) -> None:
    answer = stack.chat(HELLO, model=model, temperature=0).raise_for_status()
    assert answer.json()["choices"][0]["message"]["content"] == ANSWERS[HELLO]
    assert answer.json()["model"] == model
    recorded = RECORDED.first("comp_best_of_lt_n").headers["x-litellm-version"]
    assert answer.headers["x-litellm-version"] == recorded
    # vLLM's own: the proxy hands it through.
    assert answer.json()["system_fingerprint"].startswith("vllm-")


def test_its_key_is_needed(stack: Stack) -> None:
    refused = httpx.get(f"{stack.url}/v1/models")
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "auth_error"


def test_a_refusal_is_vllms_in_the_proxys_words(stack: Stack) -> None:
    refused = stack.chat(HELLO, temperature=-1)
    recorded = RECORDED.first("chat_bad_temp")
    assert refused.status_code == recorded.status
    assert refused.json() == json.loads(recorded.text.replace(RECORDED.about.model, MODEL))


def test_best_of_less_than_n_is_ignored_as_it_was_recorded(stack: Stack) -> None:
    recorded = RECORDED.first("comp_best_of_lt_n")
    body = recorded.request.body | {"model": MODEL, "ignore_eos": True}
    answer = stack.client.post("/v1/completions", json=body)
    assert answer.status_code == recorded.status == 200
    assert len(answer.json()["choices"]) == len(recorded.json["choices"]) == body["n"]


@pytest.mark.parametrize("best_of", [0, 3, "many"])
@pytest.mark.parametrize("server", ["proxy", "vllm"])
def test_best_of_generates_no_candidates(stack: Stack, server: str, best_of: object) -> None:
    """Not even its type is looked at, neither by the proxy nor by vLLM."""
    body = {"model": MODEL, "prompt": HELLO, "max_tokens": 4, "n": 1, "best_of": best_of}
    answer = stack.client.post(f"{stack.address(server)}/v1/completions", json=body)
    assert answer.status_code == 200
    assert (len(answer.json()["choices"]), answer.json()["usage"]["completion_tokens"]) == (1, 4)


@pytest.mark.parametrize(("server", "expected"), [("proxy", {0: 1}), ("vllm", {0: 1, 1: 1})])
def test_the_proxy_loses_the_finish_of_one_of_two_streamed_choices(
    stack: Stack, server: str, expected: dict[int, int]
) -> None:
    body = {"n": 2, "stream": True, "temperature": 1, "max_tokens": 4, "ignore_eos": True}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": HELLO}], **body}
    answer = stack.client.post(f"{stack.address(server)}/v1/chat/completions", json=chat)
    assert finishes(answer) == expected


def finishes(answer: httpx.Response) -> Counter[int]:
    """How many finish chunks each choice has."""
    chunks = [event for event in events(answer.raise_for_status().text) if event != DONE]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return Counter(choice["index"] for choice in choices if choice.get("finish_reason"))


def test_nothing_outlives_sigterm(tmp_path: Path) -> None:
    with launched(tmp_path) as own:
        processes = descendants(own.process.pid)
        names = b" ".join(command(pid) for pid in processes)
        assert b"litellm" in names
        assert b"EngineCore" in names
        assert own.end() == 0
        assert [pid for pid in processes if runs(pid)] == []
        for url in (own.url, own.vllm_url):
            with pytest.raises(httpx.ConnectError):
                httpx.get(url)


def runs(pid: int) -> bool:
    """Not so a zombie: whoever inherited it has only to take note of its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
