"""SillyTavern's requests, as its text completion types send them.

Fields are those of its `textgen-settings.js` and of its back end's lists per type; values are its
defaults. `best_of` was dropped by later versions; earlier ones always send it, equal to `n`.
"""

import json
from typing import Any

import httpx
import pytest

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, GREETINGS, HELLO

pytestmark = pytest.mark.clients

STOP = ["\nUser:", "\nAda:", "\nSystem:"]
# The back end passes on these alone: the hosted service's own list.
INFERMATIC: dict[str, Any] = {
    "model": MODEL,
    "prompt": HELLO,
    "max_tokens": 64,
    "temperature": 0,
    "top_p": 1,
    "top_k": -1,
    "repetition_penalty": 1,
    "stream": False,
    "stop": STOP,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "min_p": 0,
    "seed": 7,
    "ignore_eos": False,
    "n": 1,
    "best_of": 1,
    "min_tokens": 0,
    "spaces_between_special_tokens": True,
    "skip_special_tokens": True,
    "logprobs": 5,
}
# Samplers and bookkeeping of other back ends, which every other type sends along.
FOREIGN: dict[str, Any] = {
    "max_new_tokens": 64,
    "typical_p": 1,
    "typical": 1,
    "sampler_seed": 7,
    "skew": 0,
    "add_bos_token": True,
    "dynamic_temperature": True,
    "dynatemp_low": 0.5,
    "dynatemp_high": 1.5,
    "dynatemp_range": 0.5,
    "dynatemp_exponent": 1,
    "smoothing_factor": 0,
    "smoothing_curve": 1,
    "dry_allowed_length": 2,
    "dry_multiplier": 0,
    "dry_base": 1.75,
    "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]',
    "dry_penalty_last_n": 0,
    "max_tokens_second": 0,
    "stopping_strings": STOP,
    "truncation_length": 8192,
    "ban_eos_token": False,
    "include_reasoning": True,
    "top_a": 0,
    "tfs": 1,
    "mirostat_mode": 0,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "custom_token_bans": "",
    "banned_strings": [],
    "api_type": "vllm",
    "api_server": "http://127.0.0.1:8000/",
    "xtc_threshold": 0.1,
    "xtc_probability": 0,
    "nsigma": 0,
    "top_n_sigma": 0,
    "min_keep": 0,
    "adaptive_target": -0.01,
    "adaptive_decay": 0.9,
}
# What is sent to all but vLLM and its kin.
GENERIC: dict[str, Any] = {
    "api_type": "generic",
    "rep_pen": 1,
    "rep_pen_range": 0,
    "repetition_penalty_range": 0,
    "guidance_scale": 1,
    "negative_prompt": "",
    "repeat_penalty": 1,
    "repeat_last_n": 0,
    "n_predict": 64,
    "num_predict": 64,
    "num_ctx": 8192,
    "mirostat": 0,
    "n_probs": 10,
    "rep_pen_slope": 1,
}
VLLM_ONLY = {"n", "best_of", "spaces_between_special_tokens"}
BODIES: dict[str, dict[str, Any]] = {
    "infermaticai": INFERMATIC,
    "vllm": INFERMATIC | FOREIGN,
    "generic": {name: value for name, value in INFERMATIC.items() if name not in VLLM_ONLY}
    | FOREIGN
    | GENERIC
    | {"logprobs": 10},
}


def complete(live: LiveServer, body: dict[str, Any], **fields: Any) -> httpx.Response:
    answer = live.client.post("/v1/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    return answer


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert data.pop() == "[DONE]"
    return [json.loads(line) for line in data]


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_succeeds_and_names_what_it_has_in_vain(live: LiveServer, kind: str) -> None:
    body = BODIES[kind]
    answer = complete(live, body)
    [choice] = answer.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("\n" + ANSWERS[HELLO], "stop")
    named = answer.headers.get("x-tenuto-ignored-params", "")
    assert sorted(filter(None, named.split(","))) == sorted(body.keys() - INFERMATIC.keys())


@pytest.mark.parametrize("kind", BODIES)
def test_a_streamed_body(live: LiveServer, kind: str) -> None:
    """It reads `choices[0].text`, and `top_logprobs` as each token's candidates."""
    body = BODIES[kind]
    pieces = [chunk["choices"][0] for chunk in events(complete(live, body, stream=True))]
    assert "".join(piece["text"] for piece in pieces) == "\n" + ANSWERS[HELLO]
    tokens = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
    likely = [each for entry in tokens for each in entry["top_logprobs"]]
    assert len(likely) > 10
    assert all(body["logprobs"] <= len(each) <= body["logprobs"] + 1 for each in likely)


@pytest.mark.parametrize("field", INFERMATIC)
def test_the_hosted_types_fields_one_by_one(live: LiveServer, field: str) -> None:
    """Each is acted on by itself, and none of them needs another one."""
    needed = {"model": MODEL, "prompt": HELLO, "max_tokens": 64, "temperature": 0}
    answer = complete(live, needed, **{field: INFERMATIC[field]})
    assert "x-tenuto-ignored-params" not in answer.headers
    assert answer.json()["choices"][0]["text"] == "\n" + ANSWERS[HELLO]


@pytest.mark.parametrize("kind", ["infermaticai", "vllm"])
@pytest.mark.parametrize("stream", [False, True])
def test_swipes_send_best_of_equal_to_n(live: LiveServer, kind: str, stream: bool) -> None:
    fields = {"n": 3, "best_of": 3, "temperature": 1.3, "stream": stream}
    answer = complete(live, BODIES[kind], **fields)
    chunks = events(answer) if stream else [answer.json()]
    parts = [choice for chunk in chunks for choice in chunk["choices"]]
    assert {part["index"] for part in parts} == {0, 1, 2}
    assert sorted(part["index"] for part in parts if part["finish_reason"]) == [0, 1, 2]


def test_candidates_of_tokens_that_are_parts_of_characters(live: LiveServer) -> None:
    """Several of them have the empty text, under which the most likely of them must be found."""
    answer = complete(live, INFERMATIC, prompt=GREETINGS, max_tokens=200)
    logprobs = answer.json()["choices"][0]["logprobs"]
    parts = [
        (own, likely)
        for text, own, likely in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
        if not text
    ]
    assert len(parts) > 10
    assert all(max(likely.values()) >= own for own, likely in parts)


def test_seed_is_left_out_when_it_is_random(live: LiveServer) -> None:
    body = {name: value for name, value in INFERMATIC.items() if name != "seed"}
    assert complete(live, body).json()["choices"][0]["text"] == "\n" + ANSWERS[HELLO]


def test_models_and_tokens(live: LiveServer) -> None:
    """The connection test, and the vLLM type's own tokenizer."""
    listed = live.client.get("/v1/models").json()["data"]
    assert MODEL in [card["id"] for card in listed if card.get("display_type") != "image"]
    counted = live.client.post("/tokenize", json={"model": MODEL, "prompt": HELLO}).json()
    usage = complete(live, INFERMATIC).json()["usage"]
    assert counted["count"] == len(counted["tokens"]) == usage["prompt_tokens"]
