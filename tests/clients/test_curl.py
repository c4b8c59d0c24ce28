"""curl as a client: what people paste into a terminal."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.conftest import CLIENT_S, wait_idle
from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, HELLO

pytestmark = pytest.mark.clients

JSON = ("-H", "Content-Type: application/json")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": HELLO}], "temperature": 0}


def curl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
    )


def test_chat(live: LiveServer) -> None:
    ran = curl(f"{live.url}/v1/chat/completions", *JSON, "-d", json.dumps(CHAT))
    answer = json.loads(ran.stdout)
    assert answer["choices"][0]["message"]["content"] == ANSWERS[HELLO]


def test_a_body_without_a_content_type_of_ours(live: LiveServer) -> None:
    """`-d` alone says that it sends a form."""
    ran = curl(f"{live.url}/chat/completions", "-d", json.dumps(CHAT))
    assert json.loads(ran.stdout)["choices"][0]["finish_reason"] == "stop"


def test_a_stream_is_shown_as_it_comes(live: LiveServer) -> None:
    body = json.dumps(CHAT | {"stream": True})
    ran = curl("--no-buffer", "--include", f"{live.url}/v1/chat/completions", *JSON, "-d", body)
    head, _, events = ran.stdout.partition("\n\n")
    assert head.splitlines()[0] == "HTTP/1.1 200 OK"
    assert "content-type: text/event-stream; charset=utf-8" in head.splitlines()
    data = [line.removeprefix("data: ") for line in events.splitlines() if line]
    assert data.pop() == "[DONE]"
    deltas: list[dict[str, Any]] = [json.loads(line)["choices"][0]["delta"] for line in data]
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWERS[HELLO]


def test_a_chunked_and_compressed_exchange(live: LiveServer) -> None:
    chunked = ("-H", "Transfer-Encoding: chunked", "--compressed", "--data-binary", "@-")
    ran = curl(f"{live.url}/v1/chat/completions", *JSON, *chunked, stdin=json.dumps(CHAT))
    assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == ANSWERS[HELLO]


def test_a_large_body_is_asked_for_first(live: LiveServer) -> None:
    """Beyond 1 MiB curl sends `Expect: 100-continue`, and waits for the server's leave."""
    body = json.dumps({"model": MODEL, "prompt": "a " * 600_000, "max_tokens": 1})
    ran = curl(f"{live.url}/v1/completions", "--verbose", *JSON, "--data-binary", "@-", stdin=body)
    assert "> Expect: 100-continue" in ran.stderr
    assert "< HTTP/1.1 100 Continue" in ran.stderr
    assert json.loads(ran.stdout)["error"]["param"] == "prompt"


def test_an_error_is_an_exit_status(live: LiveServer) -> None:
    body = json.dumps(CHAT | {"temperature": 3})
    ran = curl("--fail-with-body", f"{live.url}/v1/chat/completions", *JSON, "-d", body)
    assert ran.returncode == 22
    assert json.loads(ran.stdout)["error"]["param"] == "temperature"


def test_leaving_ends_the_request(live: LiveServer) -> None:
    """`head` closes the pipe after the first events, and curl leaves with it."""
    body = json.dumps(CHAT | {"stream": True, "ignore_eos": True, "temperature": 1})
    url = f"{live.url}/v1/chat/completions"
    pipe = f"curl --silent --no-buffer '{url}' --data '{body}' | head -n 5"
    ran = subprocess.run(
        ["bash", "-c", pipe], capture_output=True, text=True, timeout=CLIENT_S, check=True
    )
    assert len(ran.stdout.splitlines()) == 5
    wait_idle(live)
