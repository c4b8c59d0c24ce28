"""The `openai` package for Node as a client; the one for Python is among the live tests."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import INSTALL_S, Run, last_line, script, wait_idle
from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS, HELLO

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]

GOODBYE = "Goodbye!"


@pytest.fixture(scope="module")
def said(run: Run, environments: Path) -> Any:
    # From its standard input, since Node looks for packages beside a script's file.
    source = Path(script("with_openai.mjs")).read_text()
    command = ["node", "--input-type=module", "-"]
    return last_line(run("node", *command, stdin=source, cwd=environments / "node"))


def test_models(said: Any) -> None:
    assert MODEL in said["models"]
    assert said["model"] == MODEL


def test_chat(said: Any) -> None:
    assert said["chat"] == ANSWERS[HELLO]
    assert said["usage"] == 0
    assert len(said["several"]) == 3
    assert not any("," in text for text in said["several"])
    assert said["top"]
    assert set(said["top"]) == {2}


def test_streams(said: Any) -> None:
    [completion_tokens] = said["stream"].pop("usage")
    assert completion_tokens > 10
    assert said["stream"] == {"text": ANSWERS[HELLO], "roles": ["assistant"], "finish": ["stop"]}
    assert said["helper"] == {"said": ANSWERS[HELLO], "whole": ANSWERS[HELLO]}
    assert said["textStream"] == {
        "text": "\n" + ANSWERS[HELLO],
        "roles": [],
        "finish": ["stop"],
        "usage": [],
    }


def test_completions(said: Any) -> None:
    assert said["text"] == "\n" + ANSWERS[HELLO]
    assert said["batch"] == ["\n" + ANSWERS[HELLO], "\n" + ANSWERS[GOODBYE]]
    assert said["bestOf"] == [0, 1]


def test_vllm_samplers_arrive_and_others_are_named(said: Any) -> None:
    assert said["minP"] == said["greedy"] == ANSWERS[COLOURS]
    assert said["ignored"] == "guidance_scale,top_a"


def test_errors_are_its_own_classes(said: Any) -> None:
    bad = {"kind": "BadRequestError", "status": 400, "code": "400"}
    assert said["refused"] == {**bad, "param": "temperature"}
    assert said["unknown"] == {**bad, "param": None}
    assert said["missing"]["kind"] == "NotFoundError"


def test_a_stream_can_be_left(said: Any, live: LiveServer) -> None:
    assert said["left"] == 3
    wait_idle(live)
