"""LiteLLM's SDK as a client: `openai/tenuto-demo` with an `api_base`."""

from typing import Any

import pytest

from tests.clients.conftest import INSTALL_S, Run, last_line, script
from tests.live.knowledge import ANSWERS, COLOURS, HELLO

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]


@pytest.fixture(scope="module")
def said(run: Run) -> Any:
    # Or it asks the network for prices first.
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return last_line(run("litellm", "python", script("with_litellm.py"), **local))


def test_chat(said: Any) -> None:
    assert (said["chat"], said["finish"]) == (ANSWERS[HELLO], "stop")
    assert said["async"] == ANSWERS[HELLO]
    prompt, completion, total = said["tokens"]
    assert (prompt > 0, completion > 0, total) == (True, True, prompt + completion)


def test_stream(said: Any) -> None:
    completion_tokens = said["tokens"][1]
    expected = {"text": ANSWERS[HELLO], "finish": ["stop"], "usage": completion_tokens}
    assert said["stream"] == expected


def test_text_completion(said: Any) -> None:
    assert said["text"] == ["\n" + ANSWERS[HELLO], "\n" + ANSWERS["Goodbye!"]]
    assert said["text_stream"] == "\n" + ANSWERS[HELLO]


def test_several_choices_with_stop_and_logprobs(said: Any) -> None:
    assert len(said["several"]) == 3
    assert not any("," in text for text in said["several"])
    assert said["top"]
    assert set(said["top"]) == {2}


def test_vllm_samplers_arrive(said: Any) -> None:
    assert said["greedy"] == ANSWERS[COLOURS]
    assert said["hot"] != said["greedy"]
    assert said["min_p"] == said["top_k"] == said["greedy"]
    assert said["ignored"] == "dry_multiplier,top_a"


@pytest.mark.parametrize("param", ["temperature", "min_tokens", "best_of"])
def test_errors_are_its_own_and_keep_our_message(said: Any, param: str) -> None:
    error = said["refused"][param]
    assert (error["kind"], error["status"]) == ("BadRequestError", 400)
    assert f"{param} must be" in error["text"]
