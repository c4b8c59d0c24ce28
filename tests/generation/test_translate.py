"""Judged requests as what the engine is asked to do."""

from typing import Any

import pytest
from msgspec.structs import replace

from tenuto.engine.types import Constraint, ModelFacts, Sampling, TextPrompt
from tenuto.errors import BadRequest
from tenuto.generation.translate import chat_prompt, fitted, merge_system, text_prompts
from tests.building import BOUNDS, FACTS, chat, completion, plan, refused, sampling

BOTH = ("chat", "completion")
TEXT_PART = {"type": "text", "text": "b"}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("field", "value", "name", "expected"),
    [
        ("temperature", 0.5, "temperature", 0.5),
        ("temperature", 0, "temperature", 0.0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 5, "top_k", 5),
        ("top_k", 256, "top_k", 256),
        ("top_k", 257, "top_k", 256),
        ("top_k", 0, "top_k", 0),
        ("top_k", -1, "top_k", 0),
        ("min_p", 0.5, "min_p", 0.5),
        ("presence_penalty", -1, "presence_penalty", -1.0),
        ("frequency_penalty", 1, "frequency_penalty", 1.0),
        ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
        ("seed", 7, "seed", 7),
        ("seed", 0, "seed", 0),
        ("seed", -1, "seed", None),
        ("stop", "a", "stop", ("a",)),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("min_tokens", 3, "min_tokens", 3),
        ("detokenize", False, "detokenize", False),
        ("skip_special_tokens", False, "skip_special_tokens", False),
        ("spaces_between_special_tokens", False, "spaces_between_special_tokens", False),
        ("include_stop_str_in_output", True, "include_stop_str_in_output", True),
        ("ignore_eos", True, "ignore_eos", True),
        ("stop_token_ids", [1, 2], "stop_token_ids", (1, 2)),
        ("allowed_token_ids", [1, 2], "allowed_token_ids", (1, 2)),
        ("logit_bias", {"7": -1.5}, "logit_bias", {7: -1.5}),
        ("logit_bias", {}, "logit_bias", None),
        ("bad_words", ["a"], "bad_words", ("a",)),
        ("cache_salt", "s", "cache_salt", "s"),
        ("prompt_logprobs", 0, "prompt_logprobs", 0),
        ("n", 3, "n", 3),
        ("max_tokens", 9, "max_tokens", 9),
        ("guided_regex", "a", "constraint", Constraint("guided_regex", "regex", "a")),
        ("guided_choice", ["a"], "constraint", Constraint("guided_choice", "choice", ["a"])),
    ],
)
def test_every_parameter_reaches_the_engine(
    kind: str, field: str, value: Any, name: str, expected: Any
) -> None:
    assert getattr(sampling(kind, **{field: value}), name) == expected


def test_defaults() -> None:
    assert sampling("chat") == Sampling(max_tokens=FACTS.max_model_len)
    assert sampling("completion") == Sampling(max_tokens=16)


def test_completion_default_fits_a_small_context() -> None:
    small = ModelFacts(max_model_len=8, vocab_size=256)
    request = sampling("completion", small, max_tokens=8)
    assert fitted(request, 3, small, "prompt").max_tokens == 5
    assert fitted(sampling("completion", small), 3, small, "prompt").max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_completion_tokens": 9}, 9),
        ({"max_completion_tokens": 9, "max_tokens": 8}, 8),
        ({"max_completion_tokens": 100}, 100),
    ],
)
def test_max_completion_tokens_is_a_synonym(fields: dict[str, int], expected: int) -> None:
    assert sampling("chat", **fields).max_tokens == expected


def test_owners_cap_of_max_tokens() -> None:
    capped = BOUNDS.model_copy(update={"max_tokens": 10})
    assert plan("chat", FACTS, capped).sampling.max_tokens == 10
    assert plan("completion", FACTS, capped, max_tokens=50).sampling.max_tokens == 10
    assert plan("completion", FACTS, capped, max_tokens=5).sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "n", "candidates", "streams"),
    [
        ({}, 1, 1, True),
        ({"n": 3}, 3, 3, True),
        ({"n": 3, "best_of": 3}, 3, 3, True),
        ({"best_of": 4}, 1, 4, False),
        ({"n": 2, "best_of": 4}, 2, 4, False),
        ({"best_of": 4, "temperature": 0}, 1, 1, True),
    ],
)
@pytest.mark.parametrize("kind", BOTH)
def test_candidates(
    kind: str, fields: dict[str, Any], n: int, candidates: int, streams: bool
) -> None:
    made = plan(kind, stream=True, **fields)
    assert (made.n, made.sampling.n, made.sampling.stream) == (n, candidates, streams)
    assert made.stream
    assert made.sampling.logprobs == (0 if candidates > n else None)
    assert made.logprobs is None


def test_ranking_keeps_the_log_probabilities_that_were_asked_for() -> None:
    made = plan("completion", best_of=4, logprobs=3)
    assert (made.sampling.logprobs, made.logprobs) == (3, 3)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("chat", {"logprobs": True}, 0),
        ("chat", {"logprobs": True, "top_logprobs": 5}, 5),
        ("chat", {"logprobs": False}, None),
        ("completion", {"logprobs": 0}, 0),
        ("completion", {"logprobs": 5}, 5),
    ],
)
def test_log_probabilities(kind: str, fields: dict[str, Any], expected: int | None) -> None:
    made = plan(kind, **fields)
    assert (made.sampling.logprobs, made.logprobs) == (expected, expected)


@pytest.mark.parametrize(
    ("fields", "ids", "as_text"),
    [
        ({}, False, False),
        ({"return_token_ids": True}, True, False),
        ({"return_tokens_as_token_ids": True}, False, True),
        ({"detokenize": False}, True, True),
    ],
)
def test_token_ids(fields: dict[str, Any], ids: bool, as_text: bool) -> None:
    made = plan("chat", **fields)
    assert (made.return_token_ids, made.token_ids_as_text) == (ids, as_text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
def test_include_usage(options: dict[str, bool], expected: bool) -> None:
    assert plan("chat", stream=True, stream_options=options).include_usage is expected


def test_echo() -> None:
    made = plan("completion", echo=True, logprobs=2)
    assert (made.echo, made.drop_completion, made.sampling.prompt_logprobs) == (True, False, 2)
    assert plan("completion", echo=True).sampling.prompt_logprobs is None


def test_echo_of_nothing_runs_one_token() -> None:
    made = plan("completion", echo=True, max_tokens=0)
    assert (made.drop_completion, made.sampling.max_tokens) == (True, 1)


@pytest.mark.parametrize(("used", "left"), [(1, 99), (40, 60), (99, 1)])
def test_max_tokens_is_clamped_to_what_the_prompt_leaves(used: int, left: int) -> None:
    asked = sampling("chat")
    assert fitted(asked, used, FACTS, "messages") == replace(asked, max_tokens=left)


def test_smaller_max_tokens_is_kept() -> None:
    assert fitted(sampling("chat", max_tokens=5), 40, FACTS, "messages").max_tokens == 5


@pytest.mark.parametrize("used", [100, 101])
def test_prompt_that_leaves_no_room(used: int) -> None:
    with pytest.raises(BadRequest) as caught:
        fitted(sampling("chat"), used, FACTS, "messages")
    assert caught.value.param == "messages"
    assert "100 tokens" in caught.value.message
    assert f"alone has {used}" in caught.value.message


def test_min_tokens_beyond_what_is_left() -> None:
    with pytest.raises(BadRequest) as caught:
        fitted(sampling("chat", min_tokens=61), 40, FACTS, "messages")
    assert caught.value.param == "min_tokens"
    assert "at most 60" in caught.value.message
    assert "got 61" in caught.value.message


def test_max_tokens_beyond_the_context_names_both() -> None:
    error = refused("completion", max_tokens=7000)
    assert error.message.startswith("max_tokens=7000 cannot be greater than the model's context")


def test_chat_prompt_passes_on_what_rendering_needs() -> None:
    request = chat(
        messages=[{"role": "tool", "content": ["a", TEXT_PART], "tool_call_id": "7"}],
        add_special_tokens=True,
        truncate_prompt_tokens=5,
        truncation_side="left",
        chat_template_kwargs={"enable_thinking": False},
    )
    made = chat_prompt(request, "native")
    assert made.messages == [{"role": "tool", "content": "a\nb", "tool_call_id": "7"}]
    assert (made.truncate_tokens, made.truncation_side) == (5, "left")
    assert made.template_kwargs == {"enable_thinking": False}
    assert made.add_special_tokens is True


@pytest.mark.parametrize(
    ("fields", "prompted", "continued"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
def test_who_speaks_next(fields: dict[str, bool], prompted: bool, continued: bool) -> None:
    made = chat_prompt(chat(**fields), "native")
    assert (made.add_generation_prompt, made.continue_final_message) == (prompted, continued)
    assert made.add_special_tokens is False


def test_assistant_without_content_says_nothing() -> None:
    made = chat_prompt(chat(messages=[{"role": "assistant", "content": None}]), "native")
    assert made.messages == [{"role": "assistant", "content": ""}]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        ([turn("user", "a")], [turn("user", "a")]),
        ([turn("system", "s"), turn("user", "a")], [turn("user", "s\n\na")]),
        (
            [turn("user", "a"), turn("developer", "d"), turn("user", "b"), turn("system", "s")],
            [turn("user", "d\n\ns\n\na"), turn("user", "b")],
        ),
        (
            [turn("system", "s"), turn("assistant", "x"), turn("user", "a")],
            [turn("assistant", "x"), turn("user", "s\n\na")],
        ),
        ([turn("system", "s")], [turn("user", "s")]),
        (
            [turn("system", "s"), turn("assistant", "x")],
            [turn("user", "s"), turn("assistant", "x")],
        ),
    ],
)
def test_merged_system_prompts(
    messages: list[dict[str, Any]], merged: list[dict[str, Any]]
) -> None:
    assert merge_system(messages) == merged
    assert chat_prompt(chat(messages=messages), "merge").messages == merged
    assert chat_prompt(chat(messages=messages), "native").messages == messages


@pytest.mark.parametrize(
    ("prompt", "contents"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_text_prompts(prompt: Any, contents: list[Any]) -> None:
    expected = [TextPrompt(content, add_special_tokens=True) for content in contents]
    assert text_prompts(completion(prompt=prompt)) == expected


def test_text_prompt_options() -> None:
    request = completion(
        add_special_tokens=False, truncate_prompt_tokens=5, truncation_side="right"
    )
    assert text_prompts(request) == [TextPrompt("Hi", False, 5, "right")]
