"""llama-index's OpenAILike as a client, for chat models and for plain ones."""

from typing import Any

import pytest

from tests.clients.conftest import INSTALL_S, Run, last_line, script
from tests.live.knowledge import ANSWERS, HELLO

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]


@pytest.fixture(scope="module")
def said(run: Run) -> Any:
    return last_line(run("llama-index", "python", script("with_llama_index.py")))


def test_chat(said: Any) -> None:
    assert said["chat"] == said["async"] == said["complete_by_chat"] == ANSWERS[HELLO]
    assert said["usage"] > 0
    assert said["logprobs"] > 10


def test_chat_streams(said: Any) -> None:
    assert said["stream_chat"] == said["last"] == ANSWERS[HELLO]


def test_complete(said: Any) -> None:
    assert said["complete"] == said["stream_complete"] == "\n" + ANSWERS[HELLO]
    assert said["chat_by_complete"]


def test_what_goes_in_additional_kwargs_has_its_effect(said: Any) -> None:
    assert said["sampled"] == ANSWERS[HELLO]
