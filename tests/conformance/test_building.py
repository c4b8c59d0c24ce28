"""From the data of a case to a request, and what that request may cost."""

from typing import Any

import pytest

from tenuto.conformance.building import (
    BYTES_PER_TOKEN,
    DEFAULT_MAX_TOKENS,
    filled,
    max_cost,
    request_of,
    requests_of,
)
from tenuto.conformance.cases import Way, all_cases, selected
from tenuto.conformance.exchange import Request
from tenuto.conformance.facts import Facts, candidates

FOUND = {
    "open/chat": "Chat?",
    "open/completions": "Go on",
    "stop/chat": "red",
    "stop/completions": "go",
}
FACTS = Facts("own/model", "rejecting", context=3, ids=(7, 8), prompts=FOUND)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def body(spec: dict[str, Any], way: Way | None = "completions") -> Any:
    return request_of(spec, way, FACTS).body


@pytest.mark.parametrize(
    ("way", "path", "prompt"),
    [
        ("chat", CHAT, {"messages": [{"role": "user", "content": "Chat?"}]}),
        ("chat-stream", CHAT, {"messages": [{"role": "user", "content": "Chat?"}]}),
        ("completions", COMPLETIONS, {"prompt": "Go on"}),
        ("completions-stream", COMPLETIONS, {"prompt": "Go on"}),
    ],
)
def test_each_way_has_its_body(way: Way, path: str, prompt: dict[str, Any]) -> None:
    request = request_of({"ask": "open", "top_k": 3}, way, FACTS)
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    assert (request.method, request.path, request.auth) == ("POST", path, "key")
    assert request.body == {
        "model": "own/model",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "top_k": 3,
        **prompt,
        **(stream if way.endswith("-stream") else {}),
    }


def test_a_prompt_that_was_not_chosen_is_the_first_candidate() -> None:
    assert body({"ask": "echoing"})["prompt"] == candidates("echoing")[0]
    assert body({})["prompt"] == candidates("any")[0]
    assert body({}) == body({"ask": "any"})
    with pytest.raises(KeyError):
        body({"ask": "nothing"})


def test_what_a_case_says_goes_before_the_usual() -> None:
    own = {"prompt": "Mine", "max_tokens": 3, "model": "other", "n": None}
    assert body(own) == own
    assert body({"messages": []}, "chat")["messages"] == []


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream_options": None}, {"stream": True, "stream_options": None}),
        ({"stream_options": {}}, {"stream": True, "stream_options": {}}),
        ({"stream": False, "stream_options": None}, {"stream": False, "stream_options": None}),
    ],
)
def test_options_of_streams(fields: dict[str, Any], options: dict[str, Any]) -> None:
    made = body(fields, "chat-stream")
    assert {name: made[name] for name in options} == options


def test_streamed_is_what_asks_for_a_stream() -> None:
    made = body({"stream": False, "stream_options": None}, "completions-stream")
    assert made["stream"] is False
    assert "stream" not in body({}, "chat")


@pytest.mark.parametrize("number", [0, 5, 1000])
def test_log_probabilities_of_chat_have_two_names(number: int) -> None:
    ways: tuple[tuple[Way, Way], ...] = (
        ("chat", "completions"),
        ("chat-stream", "completions-stream"),
    )
    for chat, completions in ways:
        made = body({"logprobs": number}, chat)
        assert (made["logprobs"], made["top_logprobs"]) == (True, number)
        made = body({"logprobs": number}, completions)
        assert (made["logprobs"], "top_logprobs" in made) == (number, False)
    assert "logprobs" not in body({}, "chat")


def test_fields_can_be_left_out() -> None:
    left = body({"http": {"omit": ["model", "max_tokens", "nothing"]}, "top_k": 1})
    assert left.keys() == {"prompt", "top_k"}
    assert request_of({"http": {"post": "/x", "omit": ["a"]}, "a": 1}, None, FACTS).body is None


@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "options", "head"])
def test_a_path_of_its_own(method: str) -> None:
    spec = {"http": {method: "/v1/{model}/x"}, "model": "{model}", "n": 1}
    assert request_of(spec, None, FACTS) == Request(
        method.upper(), "/v1/own/model/x", {"model": "own/model", "n": 1}
    )
    assert request_of({"http": {method: "/x"}}, None, FACTS) == Request(method.upper(), "/x")


def test_the_path_of_the_way() -> None:
    paths: dict[Way, str] = {"chat": CHAT, "completions": COMPLETIONS}
    for way, path in paths.items():
        request = request_of({"http": {"post": "/v1/{endpoint}", "raw": "{"}}, way, FACTS)
        assert (request.path, request.raw, request.body) == (path, "{", None)
        assert request.content == b"{"


def test_how_it_is_sent() -> None:
    http = {
        "post": "/x",
        "auth": "wrong",
        "headers": {"x-model": "{model}"},
        "until": "idle",
        "within_s": 1,
        "leave_after": "other",
        "connection": "one",
    }
    assert request_of({"http": http}, None, FACTS) == Request(
        "POST", "/x", auth="wrong", headers={"x-model": "own/model"}, until="idle", within_s=1
    )


def test_building_leaves_the_case_as_it_is() -> None:
    for case in selected(all_cases(), ["models/one", "chat/no-model", "http/disconnect-*"]):
        before = str(case.send)
        assert requests_of(case, FACTS) == requests_of(case, FACTS)
        assert str(case.send) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{model} and {rejecting_model}", "own/model and rejecting"),
        ("{other}", "{other}"),
        ({"repeat": "ab", "times": 3}, "ababab"),
        ({"repeat": "ab", "times": 0}, ""),
        ({"repeat": [1], "times": 2}, [[1], [1]]),
        ({"repeat": {"a": "{model}"}, "times": 2}, [{"a": "own/model"}] * 2),
        ({"repeat": "ab", "times": "context"}, "ababab"),
        ({"repeat": [1], "times": "context"}, [[1]] * 3),
        # A token id of its own is a number; as the name of a field, and in a text, it cannot be.
        ("{id_a}", 7),
        ({"{id_a}": ["{id_b}"]}, {"7": [8]}),
        ("{id_a} {id_b}", "7 8"),
        ("{stop}", ""),
        ([{"a": ["{model}", {"repeat": "x", "times": 2}]}], [{"a": ["own/model", "xx"]}]),
        (1.5, 1.5),
        (None, None),
        (True, True),
    ],
)
def test_filling(value: Any, expected: Any) -> None:
    assert filled(value, FACTS) == expected


def test_the_stop_text_is_the_endpoints() -> None:
    stops: dict[Way, str] = {"chat-stream": "red", "completions": "go", "chat": "red"}
    for way, stop in stops.items():
        assert filled({"stop": ["zzz", "{stop}"]}, FACTS, way) == {"stop": ["zzz", stop]}
        assert body({"stop": "{stop}"}, way)["stop"] == stop


def test_what_nobody_told_repeats_nothing() -> None:
    assert filled({"repeat": "ab", "times": "context"}, Facts("m")) == ""


def test_a_model_that_is_not_there_has_a_name_nobody_has() -> None:
    assert filled("{rejecting_model}", Facts("m")) == Facts().model


TEXT = "x" * 40 * BYTES_PER_TOKEN
TURN = {"messages": [{"role": "user", "content": TEXT}]}


@pytest.mark.parametrize(
    ("path", "fields", "least", "most"),
    [
        (COMPLETIONS, {"prompt": TEXT}, 40 + 16, 40 + 16),
        (COMPLETIONS, {"prompt": TEXT, "max_tokens": 7}, 47, 47),
        (COMPLETIONS, {"prompt": TEXT, "max_tokens": 7, "n": 3}, 61, 61),
        (COMPLETIONS, {"prompt": TEXT, "max_tokens": 7, "n": 2, "best_of": 5}, 75, 75),
        (COMPLETIONS, {"prompt": [TEXT, TEXT], "max_tokens": 7, "n": 2}, 80 + 28, 90 + 28),
        (COMPLETIONS, {"prompt": [7] * 40, "max_tokens": 1}, 41, 200),
        (CHAT, TURN | {"max_tokens": 7, "n": 2}, 54, 80),
        (CHAT, TURN | {"max_tokens": None, "n": True, "best_of": "x"}, 41, 80),
        (CHAT, TURN | {"max_completion_tokens": 500}, 540, 580),
        (f"/engines/m{CHAT}", TURN, 56, 80),
        ("/utils/token_counter", {"prompt": TEXT}, 0, 0),
        (COMPLETIONS, {"n": 5}, 0, 0),
        (COMPLETIONS, [1], 0, 0),
        (COMPLETIONS, None, 0, 0),
    ],
)
def test_cost_is_bounded_from_above(path: str, fields: Any, least: int, most: int) -> None:
    assert least <= max_cost(Request("POST", path, fields)) <= most


def test_every_answer_has_its_bound() -> None:
    """Of the cases that generate, none is thought to be free."""
    for case in all_cases():
        if case.way:
            costs = [max_cost(request) for request in requests_of(case, FACTS).values()]
            raws = any("raw" in spec.get("http", {}) for spec in case.send.values())
            omits = any(
                "prompt" in str(s.get("http")) or "messages" in str(s.get("http"))
                for s in case.send.values()
            )
            assert raws or omits or min(costs) > 0, case.id
