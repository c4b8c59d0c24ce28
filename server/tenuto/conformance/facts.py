"""What the kit must know of a server before it asks: a model, prompts that suit it, its extras."""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tenuto.conformance.answer import UNREADABLE, Answer, folded
from tenuto.conformance.cases import data
from tenuto.conformance.exchange import Broken, Exchange, Request
from tenuto.conformance.transport import MAX_LIMIT, running_requests

UNKNOWN_MODEL = "no-model-is-known"
# The models of which the hosted documentation says that they take no system prompt.
REJECTING_MODELS = (
    "TheDrummer-Rocinante-12B-v1.1",
    "Midnight-Miqu-70B-v1.5",
    "TheDrummer-Anubis-70B-v1-FP8-Dynamic",
)
# A first token that is likelier than this says too little about how the server samples.
MAX_OPEN_PROBABILITY = 0.75
# Nearer than this, rounding or a temperature of 0.01 may choose the second best: logits between 16
# and 32 are 0.125 apart in bfloat16.
MIN_GAP_NATS = 0.6
MIN_SHORT_TOKENS = 8
STOP_LENGTH = 7
# For a server that tells no ids: of most vocabularies ordinary tokens.
USUAL_IDS = (5000, 5001)
ENDPOINTS = ("chat", "completions")
# Requests a minute, as OpenAI's API names them, and as LiteLLM names those of a key.
LIMIT_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-api_key-limit-requests")
Send = Callable[[Request], Awaitable[Exchange]]


@dataclass(frozen=True)
class Facts:
    """`prompts` holds a text by name and endpoint, and for a short one a part of its greedy answer
    (`stop`); `context` is the model's in tokens, `ids` two token ids, `limit` the requests a minute
    of the limited key. None: not known."""

    model: str = UNKNOWN_MODEL
    rejecting_model: str | None = None
    running_metric: bool = False
    key: bool = True
    limited_key: bool = False
    limit: int | None = None
    context: int | None = None
    ids: tuple[int, int] = USUAL_IDS
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def low_limit(self) -> bool:
        """So low that it can be met without spending much."""
        return self.limit is not None and 0 < self.limit <= MAX_LIMIT

    def has(self, need: str) -> bool:
        return bool(getattr(self, need))

    def lack(self, need: str) -> str:
        """Why a case with a need that is not met is not applicable."""
        match need:
            case "limited_key":
                return "no key with a limit was given"
            case "low_limit" if self.limit is None:
                return f"the limited key is not told its limit ({LIMIT_HEADERS[0]})"
            case "low_limit":
                return (
                    f"the limited key may make {self.limit} requests a minute, not 1 to {MAX_LIMIT}"
                )
            case _:
                return f"the server has no {need.replace('_', ' ')}"

    def prompt(self, name: str, endpoint: str) -> str:
        """The text of a named prompt; one that was not found is the first candidate."""
        return self.prompts.get(f"{name}/{endpoint}") or candidates(name)[0]

    def fill(self, text: str, endpoint: str = "") -> str:
        values = {
            "model": self.model,
            "rejecting_model": self.rejecting_model or UNKNOWN_MODEL,
            "stop": self.prompts.get(f"stop/{endpoint}", ""),
            "id_a": str(self.ids[0]),
            "id_b": str(self.ids[1]),
        }
        return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


PLACEHOLDER = re.compile(r"\{(\w+)\}")


@cache
def _prompts() -> dict[str, Any]:
    prompts: dict[str, Any] = data("prompts.yaml")
    return prompts


def candidates(name: str) -> list[str]:
    texts: list[str] = _prompts()[name]["candidates"]
    return texts


def probes(names: Iterable[str]) -> Iterator[Request]:
    """Every request that looking for these prompts may take."""
    for name, endpoint in sorted(_kinds(names)):
        for text in candidates(name):
            yield _probe(name, UNKNOWN_MODEL, text, endpoint)


def limit_probe(model: str) -> Request:
    """The request of the limited key whose answer tells its limit."""
    messages = [{"role": "user", "content": candidates("any")[0]}]
    body = {"model": model, "max_tokens": 1, "messages": messages}
    return Request("POST", "/v1/chat/completions", body, auth="limited", patient=False)


def told_limit(exchange: Exchange) -> int | None:
    told = (exchange.headers.get(name, "") for name in LIMIT_HEADERS)
    return next((int(value) for value in told if re.fullmatch(r"[0-9]{1,9}", value)), None)


async def discover(
    send: Send,
    models: Exchange,
    names: Iterable[str],
    given: Mapping[str, str],
    model: str | None = None,
    rejecting: str | None = None,
) -> Facts:
    """Asks a server, which listed `models`, for the prompts `name/endpoint` too; `given` are the
    user's own, by name.

    One that answers nothing useful still gets its cases, and fails them.
    """
    rows = _rows(models)
    listed = [row["id"] for row in rows]
    rejecting = rejecting or next((name for name in REJECTING_MODELS if name in listed), None)
    usual = [name for name in listed if name != rejecting]
    chosen = model or (usual[0] if usual else UNKNOWN_MODEL)
    prompts: dict[str, str] = {}
    for name, endpoint in sorted(_kinds(names)):
        texts = [given[name]] if name in given else candidates(name)
        prompts |= await _found(send, chosen, name, endpoint, texts)
    return Facts(
        model=chosen,
        rejecting_model=rejecting,
        running_metric=await _tells_running(send),
        context=await _context(send, chosen, rows),
        ids=await _ids(send, chosen),
        prompts=prompts,
    )


def _kinds(names: Iterable[str]) -> set[tuple[str, str]]:
    kinds = {(name, endpoint) for name, _, endpoint in (n.partition("/") for n in names)}
    return {(name, endpoint) for name, endpoint in kinds if name in SUITS}


def _rows(exchange: Exchange) -> list[dict[str, Any]]:
    try:
        rows = [row for row in exchange.json["data"] if isinstance(row["id"], str)]
    except (Broken, *UNREADABLE):
        return []
    # Half a character can be written in JSON, but not sent back.
    return [row for row in rows if row["id"].isprintable()]


async def _tells_running(send: Send) -> bool:
    return running_requests((await send(Request("GET", "/metrics"))).text) is not None


async def _context(send: Send, model: str, rows: list[dict[str, Any]]) -> int | None:
    """vLLM's list says it, LiteLLM's and Tenuto's information does."""
    try:
        info = (await send(Request("GET", "/v1/model/info"))).json["data"]
        rows = rows + [row["model_info"] | {"id": row["model_name"]} for row in info]
    except (Broken, *UNREADABLE):
        pass
    for row in rows:
        found = row.get("max_model_len") or row.get("max_input_tokens")
        if row.get("id") == model and isinstance(found, int):
            return found
    return None


async def _ids(send: Send, model: str) -> tuple[int, int]:
    """Two tokens of an ordinary text: control tokens of some vocabularies have low ids."""
    text = "Once upon a time there was a river."
    tokenize = Request("POST", "/tokenize", {"model": model, "prompt": text})
    body = {"model": model, "prompt": text, "max_tokens": 16, "return_token_ids": True}
    for request in (tokenize, Request("POST", "/v1/completions", body)):
        try:
            answer = (await send(request)).json
            found = answer["tokens"] if "tokens" in answer else answer["choices"][0]["token_ids"]
            first, second = [*dict.fromkeys(found)][1:3]
            return int(first), int(second)
        except (Broken, *UNREADABLE):
            continue
    return USUAL_IDS


async def _found(
    send: Send, model: str, name: str, endpoint: str, texts: Iterable[str]
) -> dict[str, str]:
    """The first text that suits the model, or nothing."""
    for text in texts:
        exchange = await send(_probe(name, model, text, endpoint))
        try:
            answer = folded(exchange)
            if exchange.status == 200 and SUITS[name](text, answer):
                stop = {f"stop/{endpoint}": stop_in(answer)} if name == "short" else {}
                return {f"{name}/{endpoint}": text, **stop}
        except (Broken, *UNREADABLE):
            continue
    return {}


def _probe(name: str, model: str, text: str, endpoint: str) -> Request:
    fields: dict[str, Any] = _prompts()[name]["probe"]
    body = {"model": model, "temperature": 0, **fields}
    if endpoint == "completions":
        return Request("POST", "/v1/completions", body | {"prompt": text})
    if "logprobs" in fields:
        body |= {"logprobs": True, "top_logprobs": fields["logprobs"]}
    body["messages"] = [{"role": "user", "content": text}]
    return Request("POST", "/v1/chat/completions", body)


def is_open(text: str, answer: Answer) -> bool:
    """The model's first token is far from certain, and no tie."""
    best = max(logprob for _, logprob in answer.first.top[0])
    return math.exp(best) <= MAX_OPEN_PROBABILITY and _gap(answer) >= MIN_GAP_NATS


def is_echoing(text: str, answer: Answer) -> bool:
    """The greedy answer begins with a token of the prompt, and not by a narrow choice."""
    said = answer.first.text.strip()
    return bool(said) and said in text and _gap(answer) >= MIN_GAP_NATS


def is_short(text: str, answer: Answer) -> bool:
    """The model ends its answer by itself, after several words."""
    used = answer.used("completion_tokens")
    ended = MIN_SHORT_TOKENS <= used < _prompts()["short"]["probe"]["max_tokens"]
    return ended and " " in answer.first.text.strip()


def _gap(answer: Answer) -> float:
    """Between the two most likely first tokens; without log-probabilities nobody can tell."""
    if not answer.first.top:
        return math.inf
    best, second = sorted((logprob for _, logprob in answer.first.top[0]), reverse=True)[:2]
    return best - second


def stop_in(answer: Answer) -> str:
    """A part from the middle of the text, over the borders of tokens."""
    text = answer.first.text
    middle = max(1, (len(text) - STOP_LENGTH) // 2)
    return text[middle : middle + STOP_LENGTH]


SUITS: dict[str, Callable[[str, Answer], bool]] = {
    "open": is_open,
    "echoing": is_echoing,
    "short": is_short,
}
