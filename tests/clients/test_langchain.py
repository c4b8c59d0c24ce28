"""langchain-openai as a client: the chat model and the completions model."""

from typing import Any

import pytest

from tests.clients.conftest import INSTALL_S, Run, last_line, script
from tests.live.knowledge import ANSWERS, HELLO

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]

GOODBYE = "Goodbye!"


@pytest.fixture(scope="module")
def said(run: Run) -> Any:
    return last_line(run("langchain", "python", script("with_langchain.py")))


def test_chat(said: Any) -> None:
    assert said["invoke"] == said["async"] == ANSWERS[HELLO]
    assert said["batch"] == [ANSWERS[HELLO], ANSWERS[GOODBYE]]
    assert said["finish"] == "stop"
    assert said["logprobs"] > 10


def test_chat_streams_with_usage(said: Any) -> None:
    assert said["stream"] == ANSWERS[HELLO]
    assert said["pieces"] > 3
    assert said["stream_usage"] == said["usage"] > 0


def test_completions(said: Any) -> None:
    hello, goodbye = "\n" + ANSWERS[HELLO], "\n" + ANSWERS[GOODBYE]
    assert said["completion"] == said["completion_stream"] == said["best_of"] == hello
    assert said["completion_batch"] == [hello, goodbye]


def test_what_goes_in_extra_body_has_its_effect(said: Any) -> None:
    assert said["choice"] in ("red", "blue")
    assert said["top_k"] == ANSWERS[HELLO]


def test_a_refusal_is_openais_exception(said: Any) -> None:
    assert said["refused"] == [400, "max_completion_tokens"]
