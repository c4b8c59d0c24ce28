"""Unstreamed answers of both endpoints."""

from typing import Any

import msgspec

from tenuto.engine.types import Prompt, TokenLogprob
from tenuto.generation.answer import Head, chat_answer, completion_answer
from tenuto.generation.fold import Choice, Folded
from tests.building import plan

HEAD = Head("id-1", 1700000000, "asked/name")
PROMPT = Prompt([1, 2, 3], "abc")
PROMPT_LOGPROBS = [None, TokenLogprob(2, "b", -1.0), TokenLogprob(3, "c", float("-inf"))]


def folded(*choices: Choice, **fields: Any) -> Folded:
    return Folded({choice.index: choice for choice in choices}, **fields)


def finished(index: int, text: str, *token_ids: int) -> Choice:
    return Choice(index, text, list(token_ids), finish_reason="stop")


def chat_of(result: Folded, **fields: Any) -> Any:
    return msgspec.to_builtins(chat_answer(HEAD, result, [PROMPT], plan("chat", **fields))[0])


def completion_of(result: Folded, *prompts: Prompt, **fields: Any) -> Any:
    made = plan("completion", **fields)
    return msgspec.to_builtins(completion_answer(HEAD, result, prompts or (PROMPT,), made)[0])


def test_chat_is_whole() -> None:
    answer = chat_of(folded(finished(0, "x", 7, 8), cached_tokens={0: 2}))
    fingerprint = answer.pop("system_fingerprint")
    assert fingerprint.startswith("tenuto-")
    assert answer == {
        "id": "id-1",
        "created": 1700000000,
        "model": "asked/name",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x"},
                "finish_reason": "stop",
                "stop_reason": None,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def test_completion_batch_finds_each_choices_prompt() -> None:
    result = folded(*(finished(i, f"-{i}", i) for i in range(4)))
    answer = completion_of(result, PROMPT, Prompt([4], "d"), n=2, echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["abc-0", "abc-1", "d-2", "d-3"]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["object"] == "text_completion"


def test_usage_counts_the_returned_choices() -> None:
    candidates = [finished(0, "a", 1, 2, 3), finished(1, "b", 1)]
    candidates[0].cumulative_logprob = -9.0
    answer = completion_of(folded(*candidates), best_of=2)
    assert [choice["text"] for choice in answer["choices"]] == ["b"]
    assert answer["usage"]["completion_tokens"] == 1


def test_token_ids_when_asked() -> None:
    result = folded(finished(0, "x", 7))
    answer = chat_of(result, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == [7]
    assert answer["prompt_token_ids"] == [1, 2, 3]
    choice = completion_of(result, return_token_ids=True)["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([7], [1, 2, 3])


def test_echo_of_nothing_is_the_prompt_alone() -> None:
    answer = completion_of(folded(finished(0, "x", 7)), echo=True, max_tokens=0)
    assert answer["choices"][0]["text"] == "abc"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


def test_echo_with_log_probabilities_covers_prompt_and_completion() -> None:
    choice = finished(0, "xy", 7)
    choice.logprobs = [TokenLogprob(7, "xy", -0.5)]
    result = folded(choice, prompt_logprobs={0: PROMPT_LOGPROBS})
    logprobs = completion_of(result, echo=True, logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "xy"]
    assert logprobs["token_logprobs"] == [None, -1.0, -9999.0, -0.5]
    assert logprobs["text_offset"] == [0, 1, 2, 3]


def test_prompt_log_probabilities_in_vllms_shape() -> None:
    result = folded(finished(0, "x", 7), prompt_logprobs={0: PROMPT_LOGPROBS})
    expected = [
        None,
        {"2": {"logprob": -1.0, "decoded_token": "b"}},
        {"3": {"logprob": -9999.0, "decoded_token": "c"}},
    ]
    assert chat_of(result, prompt_logprobs=0)["prompt_logprobs"] == expected
    assert completion_of(result, prompt_logprobs=0)["choices"][0]["prompt_logprobs"] == expected
    assert "prompt_logprobs" not in completion_of(result, echo=True)["choices"][0]
