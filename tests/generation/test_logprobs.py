"""Log-probabilities in the shapes of the two endpoints."""

import msgspec
from msgspec.structs import replace

from tenuto.engine.types import TokenLogprob, TopLogprob
from tenuto.generation.logprobs import chat_logprobs, completion_logprobs
from tests.building import plan

INF = float("inf")
TOP = (TopLogprob(66, "B", -0.1), TopLogprob(65, "é", -0.5), TopLogprob(67, "C", -INF))
ENTRIES = [TokenLogprob(65, "é", -0.5, TOP), TokenLogprob(68, "dd", -INF, ())]
CHAT = plan("chat", logprobs=True, top_logprobs=3)
COMPLETION = plan("completion", logprobs=3)


def test_chat_shape() -> None:
    assert msgspec.to_builtins(chat_logprobs(ENTRIES, CHAT)) == {
        "content": [
            {
                "token": "é",
                "logprob": -0.5,
                "bytes": [0xC3, 0xA9],
                "top_logprobs": [
                    {"token": "B", "logprob": -0.1, "bytes": [66]},
                    {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]},
                    {"token": "C", "logprob": -9999.0, "bytes": [67]},
                ],
            },
            {"token": "dd", "logprob": -9999.0, "bytes": [100, 100], "top_logprobs": []},
        ]
    }


def test_completion_shape() -> None:
    assert msgspec.to_builtins(completion_logprobs(ENTRIES, COMPLETION, offset=10)) == {
        "tokens": ["é", "dd"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"é": -0.5, "B": -0.1, "C": -9999.0}, {"dd": -9999.0}],
        "text_offset": [10, 11],
    }


def test_first_prompt_token_has_none() -> None:
    logprobs = completion_logprobs([None, ENTRIES[0]], COMPLETION)
    assert logprobs is not None
    assert logprobs.token_logprobs == [None, -0.5]
    assert logprobs.top_logprobs[0] is None
    assert logprobs.text_offset == [0, 0]


def test_zero_alternatives_give_no_top() -> None:
    logprobs = completion_logprobs(ENTRIES[1:], replace(COMPLETION, logprobs=0))
    assert logprobs is not None
    assert logprobs.top_logprobs == [None]


def test_token_ids_in_place_of_text() -> None:
    in_chat = chat_logprobs(ENTRIES[:1], replace(CHAT, token_ids_as_text=True))
    assert in_chat is not None
    assert (in_chat.content[0].token, in_chat.content[0].bytes) == ("token_id:65", None)
    top = in_chat.content[0].top_logprobs[0]
    assert (top.token, top.bytes) == ("token_id:66", None)
    in_text = completion_logprobs(ENTRIES[:1], replace(COMPLETION, token_ids_as_text=True))
    assert in_text is not None
    assert in_text.tokens == ["token_id:65"]


def test_token_that_was_not_decoded() -> None:
    logprobs = chat_logprobs([TokenLogprob(7, None, -1.0)], CHAT)
    assert logprobs is not None
    assert (logprobs.content[0].token, logprobs.content[0].bytes) == ("token_id:7", None)


def test_none_without_being_asked_for() -> None:
    """The engine may have been asked for them to rank candidates."""
    assert chat_logprobs(ENTRIES, plan("chat", best_of=2)) is None
    assert completion_logprobs(ENTRIES, plan("completion", best_of=2)) is None
    assert chat_logprobs(None, CHAT) is None
    assert completion_logprobs(None, COMPLETION) is None
