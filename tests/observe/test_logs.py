"""What a line says, and of whom."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest

from tenuto.observe.logs import AnsweredLine, Format, log_to_stderr
from tenuto.observe.metrics import Answered

ANSWER = Answered("/v1/chat/completions", "demo", 200, 2.5, 1.25, 1.5)
LINE = AnsweredLine("an-id", "POST", ANSWER)


Logged = Callable[[Format, str | None], list[str]]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """What a process writes whose logs are set up; all is then as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []

    def log(form: Format, model: str | None) -> list[str]:
        log_to_stderr("info", form, model)
        logger = logging.getLogger("tenuto.some")
        logger.info(LINE)
        logger.debug("nobody sees this")
        logger.warning("%d of them", 2)
        return capsys.readouterr().err.splitlines()

    yield log
    root.handlers = handlers
    root.setLevel(level)


def test_text(logged: Logged) -> None:
    first, second = logged("text", None)
    _, _, said = first.partition(" ")
    assert said == (
        "I tenuto.some: an-id POST /v1/chat/completions 200 2.500 s demo queue 1.250 s "
        "first token 1.500 s"
    )
    assert second.endswith(" W tenuto.some: 2 of them")


def test_json(logged: Logged) -> None:
    answered, other = map(json.loads, logged("json", "a-model"))
    assert answered.pop("time").endswith("Z")
    assert answered == {
        "level": "info",
        "logger": "tenuto.some",
        "model": "demo",
        "request_id": "an-id",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "duration_s": 2.5,
        "queue_s": 1.25,
        "first_token_s": 1.5,
    }
    assert (other["level"], other["message"], other["model"]) == ("warning", "2 of them", "a-model")


def test_an_engines_lines_name_its_model(logged: Logged) -> None:
    assert all(line.endswith(" [model a-model]") for line in logged("text", "a-model"))


@pytest.mark.parametrize(
    ("duration_s", "is_probe", "level"),
    [(0.1, False, "INFO"), (0.1, True, "DEBUG"), (60, False, "WARNING"), (60, True, "WARNING")],
)
def test_levels(duration_s: float, is_probe: bool, level: str) -> None:
    line = AnsweredLine("id", "GET", Answered("/health", "", 200, duration_s))
    assert logging.getLevelName(line.level(60, is_probe=is_probe)) == level
