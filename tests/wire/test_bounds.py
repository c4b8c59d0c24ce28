"""The contract's table of bounds: each value just inside is taken, just outside is a 400."""

from typing import Any

import pytest

from tenuto.errors import ApiError
from tenuto.wire.bounds import INT64, Bounds, Range
from tests.building import BOUNDS, FACTS, refusal, refused

BOTH = ("chat", "completion")
CHAT = ("chat",)
COMPLETION = ("completion",)
SECRET = "secret"
Fields = dict[str, Any]


def messages(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": SECRET}] * count


def schema(num_bytes: int) -> dict[str, str]:
    """A JSON schema that is encoded in `num_bytes`."""
    return {"title": "x" * (num_bytes - len('{"title":""}'))}


def patterned(count: int) -> dict[str, Any]:
    return {"properties": {f"p{i}": {"pattern": SECRET} for i in range(count)}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def biases(count: int) -> dict[str, float]:
    return {str(i): 1 for i in range(count)}


NUMBERS: list[tuple[str, tuple[str, ...], list[Any], list[Any], str]] = [
    ("temperature", BOTH, [0, 2], [-0.01, 2.01], "at least 0 and at most 2"),
    ("top_p", BOTH, [1e-9, 1], [0, 1.01], "greater than 0 and at most 1"),
    ("min_p", BOTH, [0, 1], [-0.01, 1.01], "at least 0 and at most 1"),
    ("top_k", BOTH, [-1, 0, 1, 10**9], [-2], "at least -1"),
    ("presence_penalty", BOTH, [-2, 2], [-2.01, 2.01], "at least -2 and at most 2"),
    ("frequency_penalty", BOTH, [-2, 2], [-2.01, 2.01], "at least -2 and at most 2"),
    ("repetition_penalty", BOTH, [1e-9, 1e9], [0, -1], "greater than 0"),
    (
        "seed",
        BOTH,
        [-INT64, -1, 0, INT64 - 1],
        [-INT64 - 1, INT64],
        "at least -9223372036854775808 and at most 9223372036854775807",
    ),
    ("n", BOTH, [1, 16], [0, 17], "at least 1 and at most 16"),
    ("best_of", BOTH, [1, 16], [0, 17], "at least 1 and at most 16"),
    ("max_tokens", BOTH, [1, FACTS.max_model_len], [0, -1], "at least 1"),
    ("max_completion_tokens", CHAT, [1, FACTS.max_model_len], [0, -1], "at least 1"),
    ("min_tokens", BOTH, [0, 16], [-1], "at least 0"),
    ("logprobs", COMPLETION, [0, 20], [-1, 21], "at least 0 and at most 20"),
    ("top_logprobs", CHAT, [0, 20], [-1, 21], "at least 0 and at most 20"),
    ("prompt_logprobs", BOTH, [0, 20], [-1, 21], "at least 0 and at most 20"),
    ("truncate_prompt_tokens", BOTH, [-1, 5], [-2], "at least -1"),
]
COMPANIONS: dict[str, Fields] = {
    "top_logprobs": {"logprobs": True},
    "min_tokens": {"max_tokens": 16},
}


def rows(position: int) -> list[Any]:
    return [
        pytest.param(kind, row[0], value, row[4], id=f"{kind}-{row[0]}-{value}")
        for row in NUMBERS
        for kind in row[1]
        for value in row[position]
    ]


@pytest.mark.parametrize(("kind", "name", "value", "allowed"), rows(2))
def test_number_just_inside(kind: str, name: str, value: float, allowed: str) -> None:
    assert refusal(kind, **COMPANIONS.get(name, {}), **{name: value}) is None


@pytest.mark.parametrize(("kind", "name", "value", "allowed"), rows(3))
def test_number_just_outside(kind: str, name: str, value: float, allowed: str) -> None:
    error = refused(kind, **COMPANIONS.get(name, {}), **{name: value})
    blamed(error, name)
    shown = float(value) if name in FLOATS else value
    assert error.message == f"{name} must be {allowed}, got {shown}."


FLOATS = {
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", sorted(FLOATS))
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_are_finite(kind: str, name: str, value: str) -> None:
    blamed(refused(kind, **{name: float(value)}), name)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_is_bound_by_the_models_context(kind: str, name: str) -> None:
    if (kind, name) == ("completion", "max_completion_tokens"):
        return
    error = refused(kind, **{name: FACTS.max_model_len + 1})
    blamed(error, name)
    assert f"{name}=101 " in error.message
    assert "100 tokens" in error.message


SIZES: list[tuple[tuple[str, ...], str, Any, Any, str]] = [
    (CHAT, "messages", messages(2048), messages(2049), "1 to 2048 messages, got 2049"),
    (CHAT, "messages", messages(1), [], "1 to 2048 messages, got 0"),
    (COMPLETION, "prompt", [SECRET] * 128, [SECRET] * 129, "1 to 128 prompts, got 129"),
    (COMPLETION, "prompt", [[1]] * 128, [[1]] * 129, "1 to 128 prompts, got 129"),
    (COMPLETION, "prompt", [1] * 129, [], "1 to 128 prompts, got 0"),
    (COMPLETION, "prompt", "x", "", "non-empty"),
    (COMPLETION, "prompt", ["x"], ["x", ""], "non-empty"),
    (COMPLETION, "prompt", [[1]], [[1], []], "non-empty"),
    (BOTH, "stop", [SECRET] * 64, [SECRET] * 65, "at most 64 strings of 1 to 512 characters"),
    (BOTH, "stop", "x" * 512, "x" * 513, "at most 64 strings of 1 to 512 characters"),
    (BOTH, "stop", ["x"], ["x", ""], "at most 64 strings of 1 to 512 characters"),
    (BOTH, "stop", [], "", "at most 64 strings of 1 to 512 characters"),
    (BOTH, "bad_words", [SECRET] * 256, [SECRET] * 257, "at most 256 strings of 1 to 512"),
    (BOTH, "bad_words", ["x" * 512], ["x" * 513], "at most 256 strings of 1 to 512"),
    (BOTH, "logit_bias", biases(1024), biases(1025), "at most 1024 token ids, each with a bias"),
    (BOTH, "logit_bias", {"7": 100}, {"7": 100.5}, "from -100 to 100, got 7: 100.5"),
    (BOTH, "logit_bias", {"7": -100}, {"7": -100.5}, "from -100 to 100, got 7: -100.5"),
    (BOTH, "logit_bias", {"0": 1}, {"-1": 1}, "got -1: 1"),
    (BOTH, "logit_bias", {}, {"the": 1}, "got the: 1"),
    (BOTH, "stop_token_ids", [1] * 1024, [1] * 1025, "at most 1024 entries, got 1025 entries"),
    (BOTH, "allowed_token_ids", [1] * 1024, [1] * 1025, "at most 1024 entries, got 1025 entries"),
    (BOTH, "allowed_token_ids", [1], [], "non-empty"),
    (BOTH, "guided_json", schema(65536), schema(65537), "a JSON schema of at most 65536 bytes"),
    (BOTH, "guided_json", patterned(256), patterned(257), "and 256 patterned properties"),
    (BOTH, "guided_regex", "x" * 2048, "x" * 2049, "a regex of 1 to 2048 bytes"),
    (BOTH, "guided_regex", "é" * 1024, "é" * 1025, "a regex of 1 to 2048 bytes"),
    (BOTH, "guided_regex", "x", "", "a regex of 1 to 2048 bytes"),
    (BOTH, "guided_grammar", "x" * 8192, "x" * 8193, "a grammar of 1 to 8192 bytes"),
    (BOTH, "guided_grammar", "x", "", "a grammar of 1 to 8192 bytes"),
    (BOTH, "guided_choice", ["x"] * 1000, ["x"] * 1001, "1 to 1000 non-empty strings"),
    (BOTH, "guided_choice", ["x"], [], "1 to 1000 non-empty strings"),
    (BOTH, "guided_choice", ["x"], ["x", ""], "1 to 1000 non-empty strings"),
    (
        CHAT,
        "chat_template_kwargs",
        {f"a{i}": SECRET for i in range(16)},
        {f"a{i}": SECRET for i in range(17)},
        "at most 16 names",
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "inside", "outside", "allowed"),
    [
        pytest.param(kind, *row, id=f"{kind}-{row[0]}-{row[3][:30]}")
        for kinds, *row in SIZES
        for kind in kinds
    ],
)
def test_sizes(kind: str, name: str, inside: Any, outside: Any, allowed: str) -> None:
    assert refusal(kind, **{name: inside}) is None
    error = refused(kind, **{name: outside})
    blamed(error, name)
    assert allowed in error.message
    assert SECRET not in error.message


SETTINGS: dict[str, tuple[str, Fields, str]] = {
    "messages": ("chat", {"messages": messages(2)}, "messages"),
    "prompts": ("completion", {"prompt": ["a", "b"]}, "prompt"),
    "n": ("chat", {"n": 2}, "n"),
    "best_of": ("chat", {"best_of": 2}, "best_of"),
    "stop_strings": ("chat", {"stop": ["a", "b"]}, "stop"),
    "stop_characters": ("chat", {"stop": "ab"}, "stop"),
    "logprobs": ("completion", {"logprobs": 2}, "logprobs"),
    "logit_bias": ("chat", {"logit_bias": biases(2)}, "logit_bias"),
    "bad_words": ("chat", {"bad_words": ["a", "b"]}, "bad_words"),
    "token_ids": ("chat", {"stop_token_ids": [1, 2]}, "stop_token_ids"),
    "schema_bytes": ("chat", {"guided_json": {"a": 1}}, "guided_json"),
    "schema_patterns": ("chat", {"guided_json": patterned(2)}, "guided_json"),
    "regex_bytes": ("chat", {"guided_regex": "ab"}, "guided_regex"),
    "grammar_bytes": ("chat", {"guided_grammar": "ab"}, "guided_grammar"),
    "choices": ("chat", {"guided_choice": ["a", "b"]}, "guided_choice"),
    "tools": ("chat", {"tools": [tool("f"), tool("g")]}, "tools"),
    "template_kwargs": ("chat", {"chat_template_kwargs": {"a": 1, "b": 2}}, "chat_template_kwargs"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_bound_is_a_setting(name: str) -> None:
    kind, fields, param = SETTINGS[name]
    assert refusal(kind, **fields) is None
    blamed(refused(kind, BOUNDS.model_copy(update={name: 1}), **fields), param)


def test_every_setting_is_tried() -> None:
    # Body, headers and embeddings are tried with the API; max_tokens clamps, in translation.
    elsewhere = {"body_bytes", "header_bytes", "max_tokens", "inputs"}
    assert SETTINGS.keys() == Bounds.model_fields.keys() - elsewhere


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Range(0, 2), "at least 0 and at most 2"),
        (Range(0, above=True), "greater than 0"),
        (Range(-1), "at least -1"),
    ],
)
def test_range_says_what_is_allowed(interval: Range, text: str) -> None:
    assert str(interval) == text


def blamed(error: ApiError, param: str) -> None:
    assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
