"""The toy engine over real HTTP: every sampling parameter has its effect, on both endpoints."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.toy import EOS, VOCAB_SIZE, Context, ToyBackend, encoded
from tests.conftest import Running, Setup, served
from tests.sse import DONE, chat_body, choices_of, connected, events, read_until, request_bytes

ENDPOINTS = ["chat", "complete"]
GREEDY: dict[str, Any] = {"temperature": 0}
RANDOM: dict[str, Any] = {"temperature": 1, "seed": 5, "max_tokens": 16}
each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(tmp_path_factory.mktemp("toy"), Setup(backend=ToyBackend())) as running:
        running.engine()
        yield running


def answer(toy: Running, endpoint: str, prompt: str = "Tell me.", **fields: Any) -> Any:
    asked = {"max_tokens": 64, "return_token_ids": True, **fields}
    response = getattr(toy, endpoint)(prompt, **asked)
    assert response.status_code == 200, response.text
    return response.json()


def choices(toy: Running, endpoint: str, *prompt: str, **fields: Any) -> list[Any]:
    found: list[Any] = answer(toy, endpoint, *prompt, **fields)["choices"]
    for choice in found:
        choice["text"] = choice.get("text", choice.get("message", {}).get("content"))
    return found


def texts(toy: Running, endpoint: str, *prompt: str, **fields: Any) -> list[str]:
    return [choice["text"] for choice in choices(toy, endpoint, *prompt, **fields)]


def text(toy: Running, endpoint: str, *prompt: str, **fields: Any) -> str:
    return texts(toy, endpoint, *prompt, **fields)[0]


def streamed_text(stream: list[Any], index: int) -> str:
    parts = [chunk.get("delta", chunk) for chunk in choices_of(stream, index)]
    return "".join(part.get("content", part.get("text", "")) for part in parts)


def test_the_next_token_is_well_spread() -> None:
    context = Context(lora=None)
    for token in encoded("[USER]An ox is by me.\n[ASSISTANT]"):
        context.add(token)
        values = sorted(context.logits().values(), reverse=True)
        total = sum(map(math.exp, values))
        shares = [math.exp(value) / total for value in values]
        assert shares[0] < 0.4
        assert sum(share > 0.01 for share in shares) >= 10
        assert len(set(values)) == len(values)


@each_endpoint
def test_greedy_answers_end_by_themselves(toy: Running, endpoint: str) -> None:
    prompts = ["Tell me.", "Name a colour", "Hi"]
    found = [choices(toy, endpoint, prompt, **GREEDY)[0] for prompt in prompts]
    assert len({choice["text"] for choice in found}) == 3
    lengths = range(12, 25) if endpoint == "chat" else range(36, 45)
    for choice in found:
        assert len(choice["text"]) in lengths
        assert choice["token_ids"] == [*choice["text"].encode(), EOS]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert text(toy, endpoint, prompts[0], **GREEDY) == found[0]["text"]


@each_endpoint
def test_seeds_and_candidates(toy: Running, endpoint: str) -> None:
    several, same = (texts(toy, endpoint, n=4, **RANDOM) for _ in range(2))
    assert several == same
    assert len(set(several)) == 4
    assert text(toy, endpoint, **{**RANDOM, "seed": 6}) == several[1]
    opposite = [text(toy, endpoint, **{**RANDOM, "seed": seed}) for seed in (7, -7)]
    assert opposite[0] != opposite[1]
    assert len({text(toy, endpoint, max_tokens=16) for _ in range(3)}) == 3


@each_endpoint
def test_temperature_spreads(toy: Running, endpoint: str) -> None:
    greedy = text(toy, endpoint, temperature=0, max_tokens=8)
    cold, cool, warm = (
        set(texts(toy, endpoint, temperature=temperature, seed=3, max_tokens=8, n=16))
        for temperature in (0.01, 0.3, 2)
    )
    assert cold == {greedy}
    assert len({found[0] for found in cool}) < len({found[0] for found in warm})


@each_endpoint
@pytest.mark.parametrize("narrow", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1}], ids=str)
def test_narrowing_leaves_the_likeliest(
    toy: Running, endpoint: str, narrow: dict[str, Any]
) -> None:
    greedy = text(toy, endpoint, temperature=0, max_tokens=16)
    assert text(toy, endpoint, **RANDOM) != greedy
    assert text(toy, endpoint, **RANDOM, **narrow) == greedy


@pytest.mark.parametrize(
    ("narrow", "most"),
    # The likeliest has 0.29, the second half as much, and each next one 0.79 of the one before.
    [({"top_k": 3}, 3), ({"top_p": 0.5}, 3), ({"min_p": 0.5}, 2), ({}, 27)],
    ids=str,
)
def test_narrowing_leaves_as_many(toy: Running, narrow: dict[str, Any], most: int) -> None:
    """Of 64 first tokens: those few are all seen, and no other."""
    found = [
        choice
        for seed in range(0, 64, 16)
        for choice in texts(toy, "chat", n=16, seed=seed, max_tokens=1, **narrow)
    ]
    seen = len(set(found))
    assert seen == most if narrow else 8 < seen <= most


@each_endpoint
def test_penalties_break_a_repetition(toy: Running, endpoint: str) -> None:
    def heard(**fields: Any) -> str:
        asked = {"temperature": 0, "max_tokens": 40, "min_tokens": 40}
        return text(toy, endpoint, "ha ha ha ha ", **asked, **fields)

    assert heard() == ("ha " * 14)[:40]
    for penalty in ({"frequency_penalty": 2}, {"repetition_penalty": 10}):
        broken = heard(**penalty)
        assert broken != heard()
        assert len(set(broken)) > 6
    assert heard(repetition_penalty=10)[:3] != heard(frequency_penalty=2)[:3]


@each_endpoint
@pytest.mark.parametrize(
    ("penalty", "values"),
    [
        ("presence_penalty", (-2, 0, 2)),
        ("frequency_penalty", (-2, 0, 2)),
        ("repetition_penalty", (0.5, 1, 5)),
    ],
)
def test_penalties_widen_the_vocabulary(
    toy: Running, endpoint: str, penalty: str, values: tuple[float, ...]
) -> None:
    asked = {"max_tokens": 40, "min_tokens": 40, **GREEDY}
    few, plain, many = (
        len(set(text(toy, endpoint, **asked, **{penalty: value}))) for value in values
    )
    assert few < plain <= many
    assert few < many


@each_endpoint
def test_the_prompt_counts_for_repetition_alone(toy: Running, endpoint: str) -> None:
    asked = {"max_tokens": 1, **GREEDY}
    likely = text(toy, endpoint, "ha ha ha ha ", **asked)
    assert likely == "h"
    assert text(toy, endpoint, "ha ha ha ha ", presence_penalty=2, **asked) == likely
    assert text(toy, endpoint, "ha ha ha ha ", repetition_penalty=10, **asked) != likely


@each_endpoint
def test_best_of_returns_the_likeliest(toy: Running, endpoint: str) -> None:
    logprobs = {"logprobs": True} if endpoint == "chat" else {"logprobs": 0}
    candidates = choices(toy, endpoint, n=8, **RANDOM, **logprobs)

    def cumulative(choice: Any) -> float:
        entries = choice["logprobs"]
        values = entries.get("token_logprobs") or [entry["logprob"] for entry in entries["content"]]
        return float(sum(values))

    ranked = sorted(candidates, key=cumulative, reverse=True)
    assert ranked[:3] != candidates[:3]
    best = texts(toy, endpoint, n=3, best_of=8, **RANDOM)
    assert best == [choice["text"] for choice in ranked[:3]]


@each_endpoint
def test_stops(toy: Running, endpoint: str) -> None:
    whole = text(toy, endpoint, **GREEDY)
    stop, token = whole[5:8], whole[9]
    cut = choices(toy, endpoint, stop=["nowhere", stop], **GREEDY)[0]
    start = whole.index(stop)
    assert cut["text"] == whole[:start]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
    assert len(cut["token_ids"]) == start + 3
    asked = {"stop": stop, "include_stop_str_in_output": True, **GREEDY}
    assert text(toy, endpoint, **asked) == whole[: start + 3]
    by_token = choices(toy, endpoint, stop_token_ids=[ord(token)], **GREEDY)[0]
    assert by_token["text"] == whole.partition(token)[0]
    assert by_token["stop_reason"] == ord(token)


@each_endpoint
def test_lengths(toy: Running, endpoint: str) -> None:
    whole = text(toy, endpoint, **GREEDY)
    short = choices(toy, endpoint, max_tokens=5, **GREEDY)[0]
    assert (short["text"], short["finish_reason"]) == (whole[:5], "length")
    long = choices(toy, endpoint, min_tokens=60, **GREEDY)[0]
    assert long["text"].startswith(whole)
    assert len(long["text"]) == 60
    assert long["finish_reason"] == "stop"
    endless = {"ignore_eos": True, "max_tokens": 120, **GREEDY}
    ignored = choices(toy, endpoint, **endless)[0]
    assert ignored["finish_reason"] == "length"
    assert ignored["token_ids"].count(EOS) >= 2
    assert "<|end|>" not in ignored["text"]
    shown = text(toy, endpoint, skip_special_tokens=False, **endless)
    assert shown.startswith(f"{whole}<|end|>")


@each_endpoint
def test_tokens_chosen_by_the_client(toy: Running, endpoint: str) -> None:
    whole = text(toy, endpoint, **GREEDY)
    biased = {"logit_bias": {str(ord("Q")): 100}, "max_tokens": 4, **GREEDY}
    assert text(toy, endpoint, **biased) == "QQQQ"
    against = {str(ord(whole[0])): -100}
    assert whole[0] not in text(toy, endpoint, logit_bias=against, **GREEDY)
    allowed = text(toy, endpoint, allowed_token_ids=[*b"XYZ"], max_tokens=9, seed=1)
    assert (len(allowed), {*allowed}) == (9, {*"XYZ"})
    good = text(toy, endpoint, bad_words=[whole[:3]], **GREEDY)
    assert good[:2] == whole[:2]
    assert whole[:3] not in good


@each_endpoint
@pytest.mark.parametrize("field", ["logit_bias", "allowed_token_ids", "stop_token_ids"])
def test_tokens_beyond_the_vocabulary(toy: Running, endpoint: str, field: str) -> None:
    value: Any = {str(VOCAB_SIZE): 1} if field == "logit_bias" else [VOCAB_SIZE]
    response = getattr(toy, endpoint)(**{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


@each_endpoint
def test_detokenize_false_gives_ids(toy: Running, endpoint: str) -> None:
    choice = choices(toy, endpoint, detokenize=False, **GREEDY)[0]
    assert not choice["text"]
    assert choice["token_ids"] == choices(toy, endpoint, **GREEDY)[0]["token_ids"]


def test_log_probabilities_are_the_models_own(toy: Running) -> None:
    plain = choices(toy, "complete", logprobs=5, **GREEDY)[0]
    entries = plain["logprobs"]
    assert "".join(entries["tokens"]) == plain["text"] + "<|end|>"
    rows = (entries[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
    for token, value, top in zip(*rows, strict=True):
        assert len(top) == 5
        assert top[token] == value == max(top.values())
    asked = {"bad_words": ["Q"], "presence_penalty": 0.01, "top_k": 1}
    assert choices(toy, "complete", logprobs=5, **asked)[0]["logprobs"] == entries
    # Nothing knows where the prompt ended, but the end of the answer does.
    echoed = choices(toy, "complete", "Tell me." + plain["text"], echo=True, logprobs=0)[0]
    values = echoed["logprobs"]["token_logprobs"][1 + len("Tell me.") :]
    assert values[: len(plain["text"])] == pytest.approx(entries["token_logprobs"][:-1])
    prompt = choices(toy, "complete", prompt_logprobs=2)[0]
    assert len(prompt["prompt_logprobs"]) == len(prompt["prompt_token_ids"])
    assert prompt["prompt_logprobs"][0] is None


@each_endpoint
@pytest.mark.parametrize(
    "fields", [{}, {"n": 3, "logprobs": 1}, {"n": 2, "stop": ["e ", "oa"]}, {"best_of": 4}], ids=str
)
@pytest.mark.parametrize("prompt", ["Tell me.", "A café with emoji"])
def test_a_stream_folds_to_the_whole(
    toy: Running, endpoint: str, prompt: str, fields: dict[str, Any]
) -> None:
    if endpoint == "chat" and "logprobs" in fields:
        fields = {**fields, "logprobs": True, "top_logprobs": 1}
    asked = {"seed": 9, "max_tokens": 30, **fields}
    whole = choices(toy, endpoint, prompt, **asked)
    stream = events(
        getattr(toy, endpoint)(prompt, stream=True, return_token_ids=True, **asked).text
    )
    assert stream[-1] == DONE
    for choice in whole:
        chunks = choices_of(stream, choice["index"])
        assert streamed_text(stream, choice["index"]) == choice["text"]
        token_ids = [token for chunk in chunks for token in chunk.get("token_ids") or ()]
        assert token_ids == choice["token_ids"]
        for name in ("finish_reason", "stop_reason"):
            assert chunks[-1][name] == choice[name]
    if "emoji" in prompt and not fields:
        assert whole[0]["text"].startswith("é ☕ 🎵 ")
        assert "�" not in str(stream)


@each_endpoint
def test_characters_are_never_halved(toy: Running, endpoint: str) -> None:
    for max_tokens, expected in enumerate(["", "é", "é ", "é ", "é ", "é ☕"], start=1):
        assert text(toy, endpoint, "My café", max_tokens=max_tokens, **GREEDY) == expected


def test_prompt_counts_agree(toy: Running) -> None:
    prompt = "Tell me, café<|end|>."
    body = {"model": "demo", "prompt": prompt}
    counted = toy.client.post("/utils/token_counter", json=body).json()["total_tokens"]
    tokens = toy.client.post("/tokenize", json=body).json()
    usage = answer(toy, "complete", prompt)["usage"]
    assert counted == tokens["count"] == usage["prompt_tokens"] == 17
    messages = chat_body()
    counted = toy.client.post("/utils/token_counter", json=messages).json()["total_tokens"]
    assert counted == toy.chat("Hi", max_tokens=1).json()["usage"]["prompt_tokens"]
    ids = {"model": "demo", "tokens": tokens["tokens"]}
    assert toy.client.post("/detokenize", json=ids).json()["prompt"] == "<|begin|>" + prompt


@pytest.mark.parametrize(("side", "kept"), [(None, "6789"), ("left", "6789"), ("right", "123")])
def test_truncation(toy: Running, side: str | None, kept: str) -> None:
    asked = {"truncate_prompt_tokens": 4, "truncation_side": side, "max_tokens": 1, "echo": True}
    choice = choices(toy, "complete", "123456789", **asked)[0]
    assert len(choice["prompt_token_ids"]) == 4
    assert choice["text"].removeprefix("<|begin|>").startswith(kept)


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z]{3}$"},
        "kind": {"enum": ["far", "near"]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}},
    },
    "$defs": {"day": {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]}},
}


@each_endpoint
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_choice": ["red", "blue"]}, "red"),
        ({"response_format": {"type": "json_object"}}, '{"answer": 1}'),
        ({"guided_json": SCHEMA}, '{"city": "AAA", "kind": "far", "days": [3]}'),
        ({"guided_regex": r"[0-9]{3}-(a|b)"}, "000-a"),
        ({"guided_grammar": 'root ::= "I " verb\nverb ::= "see" | "hear"'}, "I see"),
        ({"guided_grammar": 'start: "yes" | "no"'}, "yes"),
    ],
    ids=str,
)
def test_constraints(toy: Running, endpoint: str, fields: dict[str, Any], expected: str) -> None:
    choice = choices(toy, endpoint, **fields)[0]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")


@pytest.mark.parametrize(
    "fields",
    [{"guided_regex": "("}, {"guided_grammar": "?"}, {"guided_json": {"type": "none"}}],
    ids=str,
)
def test_bad_constraints(toy: Running, fields: dict[str, Any]) -> None:
    response = toy.chat(**fields)
    assert response.status_code == 400
    assert [response.json()["error"]["param"]] == list(fields)


@pytest.mark.parametrize("named", [True, False])
def test_forced_tools(toy: Running, named: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    choice = {"type": "function", "function": {"name": "weather"}} if named else "required"
    answered = choices(toy, "chat", tools=tools, tool_choice=choice, max_tokens=200)[0]
    [call] = answered["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["kind"] == "far"


@each_endpoint
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_ends_an_endless_answer(toy: Running, endpoint: str, stream: bool) -> None:
    path = "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    engine = toy.engine()
    toy.call(engine.started.clear)
    body = {**chat_body(stream=stream, ignore_eos=True, max_tokens=1900), "prompt": "Hi"}
    with connected(toy.url) as client:
        client.sendall(request_bytes(path, body))
        toy.wait(engine.started)
        if stream:
            read_until(client, b"data: ")
        assert engine.running == 1
    toy.wait(engine.idle)


def test_draws_are_as_likely_as_told(toy: Running) -> None:
    asked: dict[str, Any] = {"n": 16, "max_tokens": 1, "logprobs": 5}
    top = choices(toy, "complete", temperature=0, max_tokens=1, logprobs=5)[0]["logprobs"]
    drawn: Counter[str] = Counter()
    for seed in range(0, 480, 16):
        drawn.update(texts(toy, "complete", seed=seed, **asked))
    for token, value in top["top_logprobs"][0].items():
        assert drawn[token] / 480 == pytest.approx(math.exp(value), abs=0.06)
