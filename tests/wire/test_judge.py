"""Contradictions and parameters that are refused without knowing the model."""

from typing import Any

import pytest

from tenuto.wire.bounds import Bounds
from tenuto.wire.judge import TEMPLATE_OWNED
from tests.building import refusal, refused

TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("chat", {"n": 3, "best_of": 2}, "best_of"),
        ("completion", {"n": 3, "best_of": 2}, "best_of"),
        ("chat", {"n": 2, "temperature": 0}, "n"),
        ("completion", {"n": 2, "temperature": 0}, "n"),
        ("chat", {"max_tokens": 8, "min_tokens": 9}, "min_tokens"),
        ("completion", {"max_tokens": 8, "min_tokens": 9}, "min_tokens"),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("completion", {"stream_options": {}, "stream": False}, "stream_options"),
        ("chat", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ("completion", {"stream": True, "prompt_logprobs": 0}, "prompt_logprobs"),
        ("chat", {"detokenize": False, "stop": "a"}, "detokenize"),
        ("chat", {"detokenize": False, "response_format": SCHEMA}, "detokenize"),
        ("completion", {"detokenize": False, "echo": True}, "detokenize"),
        ("completion", {"detokenize": False, "stop": ["a"]}, "detokenize"),
        ("completion", {"detokenize": False, "guided_regex": "a"}, "detokenize"),
        ("completion", {"suffix": "end"}, "suffix"),
        ("completion", {"max_tokens": 0}, "max_tokens"),
        ("chat", {"max_tokens": 0}, "max_tokens"),
        ("chat", {"chat_template": "{{ x }}"}, "chat_template"),
        ("chat", {"tools": [TOOL], "detokenize": False}, "detokenize"),
        ("chat", {"tools": [TOOL, TOOL]}, "tools"),
        ("chat", {"tools": [{"function": {"name": "no space"}}]}, "tools"),
        ("chat", {"tool_choice": "required"}, "tool_choice"),
        ("chat", {"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice"),
        ("chat", {"continue_final_message": True, "add_generation_prompt": True}, "continue_final"),
        ("chat", {"messages": [{"role": "user"}]}, "messages"),
    ],
)
def test_refused(kind: str, fields: dict[str, Any], param: str) -> None:
    error = refused(kind, **fields)
    assert (error.status, error.type) == (400, "BadRequestError")
    assert error.param is not None
    assert error.param.startswith(param)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chat", {"n": 2, "best_of": 2}),
        ("completion", {"n": 1, "best_of": 5, "temperature": 0}),
        ("chat", {"n": 1, "temperature": 0}),
        ("chat", {"max_tokens": 8, "min_tokens": 8}),
        ("chat", {"top_logprobs": 0}),
        ("chat", {"stream_options": {"include_usage": True}, "stream": True}),
        ("completion", {"prompt_logprobs": 1}),
        ("completion", {"detokenize": False, "stop": []}),
        ("chat", {"detokenize": False, "response_format": {"type": "text"}}),
        ("completion", {"detokenize": True, "echo": True, "stop": "a"}),
        ("completion", {"suffix": ""}),
        ("completion", {"max_tokens": 0, "echo": True}),
        ("chat", {"tools": [], "tool_choice": "auto"}),
        ("chat", {"tools": [TOOL], "tool_choice": "none"}),
        ("chat", {"priority": 0}),
        ("chat", {"continue_final_message": True, "add_generation_prompt": False}),
        ("chat", {"messages": [{"role": "assistant"}, {"role": "user", "content": ""}]}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]}),
    ],
)
def test_accepted(kind: str, fields: dict[str, Any]) -> None:
    assert refusal(kind, **fields) is None


def test_equal_choices_are_explained() -> None:
    error = refused("chat", n=2, temperature=0)
    assert error.message == (
        "n must be 1 when temperature is 0, since all choices would be equal, got 2."
    )


@pytest.mark.parametrize("name", sorted(TEMPLATE_OWNED | {"bos_token", "eos_token", "my_token"}))
def test_template_arguments_that_rendering_owns(name: str) -> None:
    error = refused("chat", chat_template_kwargs={name: "x", "enable_thinking": True})
    assert error.param == "chat_template_kwargs"
    assert name in error.message


def test_template_arguments_that_clients_own() -> None:
    assert refusal("chat", chat_template_kwargs={"enable_thinking": False, "a": 1}) is None


def test_echo_of_nothing_has_its_own_least() -> None:
    error = refused("completion", echo=True, max_tokens=-1)
    assert error.param == "max_tokens"


def test_no_stop_strings_can_be_allowed() -> None:
    assert refused("chat", Bounds(stop_strings=0), stop="a").param == "stop"
    assert refusal("chat", Bounds(stop_strings=0), stop=[]) is None
