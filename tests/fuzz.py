"""Random bodies for every route that takes one: plausible, wrong, and nonsense."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/utils/token_counter",
    "/tokenize",
    "/detokenize",
)
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    0.5,
    1.5,
    -0.5,
    20,
    21,
    2**31,
    2**63,
    2**70,
    -(2**70),
    1e308,
    -1e308,
    1e-12,
]
STRINGS = ["", "a", "hot", "1", "\0", "é", "🎵", "}" * 20, "\u202e", "x" * 600, "</s><|eot_id|>"]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [{}], {"a": 1}, [1, "a"], [None], [1.5]]
Make = Callable[[random.Random], Any]


def one_of(*makers: Make) -> Make:
    return lambda rng: rng.choice(makers)(rng)


def some(values: Sequence[Any]) -> Make:
    return lambda rng: rng.choice(values)


def several(make: Make, most: int) -> Make:
    return lambda rng: [make(rng) for _ in range(rng.randint(0, most))]


def mapping(required: dict[str, Make], optional: dict[str, Make], most: int) -> Make:
    def make(rng: random.Random) -> dict[str, Any]:
        chosen = rng.sample(sorted(optional), rng.randint(0, min(most, len(optional))))
        return {name: field(rng) for name, field in required.items()} | {
            name: optional[name](rng) for name in chosen
        }

    return make


JUNK = some([*NUMBERS, *STRINGS, *OTHERS])
LIKELY = some([0, 1, 2, 3, 0.5, 0.9])
NUMBER = one_of(LIKELY, LIKELY, some(NUMBERS), JUNK)
FLAG = one_of(*[some([True, False])] * 3, JUNK)
TEXT = one_of(*[some(STRINGS)] * 3, JUNK)
TOKENS = one_of(several(lambda rng: rng.randint(-2, 300), 4), JUNK)
PROMPT = one_of(TEXT, TOKENS, several(TOKENS, 3), several(TEXT, 3))
SCHEMA = some(
    [{"type": "object"}, {"type": 5}, {"$ref": "#/nope"}, "{", {"pattern": "(a+)+$"}, {"enum": []}]
)
PART = mapping({"type": some(["text", "image_url", "input_audio", 5])}, {"text": TEXT}, 1)
ROLE = some(["system", "user", "assistant", "tool", "developer", "robot", 5])
MESSAGE = mapping({"role": ROLE}, {"content": one_of(TEXT, several(PART, 2)), "name": TEXT}, 2)
MESSAGES = several(one_of(MESSAGE, MESSAGE, JUNK), 3)
FORMAT = mapping(
    {"type": some(["text", "json_object", "json_schema", "x"])},
    {"json_schema": one_of(mapping({"schema": one_of(SCHEMA, JUNK)}, {}, 0), JUNK)},
    1,
)
NUMERIC = [
    "n",
    "best_of",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "max_completion_tokens",
    "truncate_prompt_tokens",
    "priority",
]
FLAGS = [
    "detokenize",
    "skip_special_tokens",
    "stream",
    "ignore_eos",
    "include_stop_str_in_output",
    "echo",
    "spaces_between_special_tokens",
    "add_special_tokens",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "add_generation_prompt",
    "continue_final_message",
    "return_token_strs",
    "logprobs",
]
FIELDS: dict[str, Make] = {
    **{name: NUMBER for name in NUMERIC},
    **{name: FLAG for name in FLAGS},
    "stop": one_of(TEXT, several(TEXT, 3)),
    "bad_words": several(TEXT, 3),
    "stop_token_ids": TOKENS,
    "allowed_token_ids": TOKENS,
    "tokens": TOKENS,
    "logit_bias": mapping({}, {key: NUMBER for key in ("1", "65", "-1", "x", "999999")}, 2),
    "stream_options": one_of(some([{"include_usage": True}, {"include_usage": "x"}]), JUNK),
    "response_format": one_of(FORMAT, JUNK),
    "guided_json": one_of(SCHEMA, JUNK),
    "guided_regex": one_of(some(["[a-z]+", "(", "(a+)+$", "\\d{1,9999}"]), JUNK),
    "guided_choice": one_of(several(TEXT, 3), JUNK),
    "guided_grammar": one_of(some(['root ::= "a"', "root ::= ", "start: /a/"]), JUNK),
    "structured_outputs": mapping({}, {"json": JUNK, "regex": JUNK, "choice": JUNK}, 2),
    "chat_template_kwargs": one_of(mapping({}, {"a": JUNK, "bos_token": JUNK}, 2), JUNK),
    "chat_template": TEXT,
    "tools": JUNK,
    "suffix": TEXT,
    "cache_salt": TEXT,
    "truncation_side": one_of(some(["left", "right", "up"]), JUNK),
    "user": JUNK,
    "mirostat_mode": NUMBER,
}
GOOD = {
    "prompt": some(["Hi"]),
    "messages": some([[{"role": "user", "content": "Hi"}]]),
}


def random_body(seed: int, model: str) -> Any:
    """Mostly objects with the required fields, so that most of them reach the engine."""
    rng = random.Random(seed)
    name = {"model": some([model] * 19 + ["nope"])}
    wild = {"prompt": PROMPT, "messages": MESSAGES}
    return one_of(
        mapping(name | GOOD, FIELDS, 1),
        mapping(name | GOOD, FIELDS, 3),
        mapping(name | wild, FIELDS, 3),
        mapping({}, FIELDS | name | wild, 5),
        JUNK,
    )(rng)


def judge(answer: httpx.Response) -> None:
    """Success, or the envelope with a status that the request is to blame for."""
    assert answer.status_code < 500, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text
        return
    body = msgspec.json.decode(answer.content)
    if answer.status_code != 200:
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["code"] == str(answer.status_code)
        assert body["error"]["message"]
