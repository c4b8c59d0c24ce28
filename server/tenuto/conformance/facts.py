"""What the kit must know of a server before it asks: a model, prompts that suit it, its extras."""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tenuto.conformance.answer import UNREADABLE, Answer, folded
from tenuto.conformance.cases import data
from tenuto.conformance.exchange import Broken, Exchange, Request
from tenuto.conformance.transport import running_requests

UNKNOWN_MODEL = "no-model-is-known"
# The models of which the hosted documentation says that they take no system prompt.
REJECTING_MODELS = (
    "TheDrummer-Rocinante-12B-v1.1",
    "Midnight-Miqu-70B-v1.5",
    "TheDrummer-Anubis-70B-v1-FP8-Dynamic",
)
# A first token that is likelier than this says too little about how the server samples.
MAX_OPEN_PROBABILITY = 0.75
# Nearer than this, rounding or a temperature of 0.01 may choose the second best.
MIN_OPEN_GAP_NATS = 0.25
Send = Callable[[Request], Awaitable[Exchange]]


@dataclass(frozen=True)
class Facts:
    """`prompts` holds a text by name and endpoint. None: the server does not have it."""

    model: str = UNKNOWN_MODEL
    rejecting_model: str | None = None
    running_metric: bool = False
    key: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)

    def has(self, need: str) -> bool:
        return bool(getattr(self, need))

    def prompt(self, name: str, endpoint: str) -> str:
        """The text of a named prompt; one that was not chosen yet is the first candidate."""
        return self.prompts.get(f"{name}/{endpoint}") or candidates(name)[0]

    def fill(self, text: str) -> str:
        text = text.replace("{model}", self.model)
        return text.replace("{rejecting_model}", self.rejecting_model or UNKNOWN_MODEL)


@cache
def _prompts() -> dict[str, Any]:
    prompts: dict[str, Any] = data("prompts.yaml")
    return prompts


def candidates(name: str) -> list[str]:
    texts: list[str] = _prompts()[name]["candidates"]
    return texts


async def discover(send: Send, model: str | None, rejecting: str | None, key: bool) -> Facts:
    """Asks a server. One that answers nothing useful still gets its cases, and fails them."""
    listed = _listed(await send(Request("GET", "/v1/models")))
    rejecting = rejecting or next((name for name in REJECTING_MODELS if name in listed), None)
    usual = [name for name in listed if name != rejecting]
    facts = Facts(
        model=model or (usual[0] if usual else UNKNOWN_MODEL),
        rejecting_model=rejecting,
        running_metric=await _tells_running(send),
        key=key,
    )
    prompts = {
        f"{name}/{endpoint}": await _chosen(send, facts, name, endpoint)
        for name in _prompts()
        for endpoint in ("chat", "completions")
    }
    return Facts(facts.model, rejecting, facts.running_metric, key, prompts)


def _listed(exchange: Exchange) -> list[str]:
    try:
        ids = [model["id"] for model in exchange.json["data"]]
    except (Broken, *UNREADABLE):
        return []
    # Half a character can be written in JSON, but not sent back.
    return [id for id in ids if isinstance(id, str) and id.isprintable()]


async def _tells_running(send: Send) -> bool:
    return running_requests((await send(Request("GET", "/metrics"))).text) is not None


async def _chosen(send: Send, facts: Facts, name: str, endpoint: str) -> str:
    """The first candidate that suits the model, the first of all when none does."""
    suits = SUITS.get(name)
    for text in candidates(name) if suits else ():
        exchange = await send(_probe(name, facts.model, text, endpoint))
        try:
            if exchange.status == 200 and suits and suits(text, folded(exchange)):
                return text
        except (Broken, *UNREADABLE):
            continue
    return candidates(name)[0]


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
    if not answer.first.top:
        raise Broken("the server shows no log-probabilities")
    best, second = sorted(answer.first.top[0].values(), reverse=True)[:2]
    return math.exp(best) <= MAX_OPEN_PROBABILITY and best - second >= MIN_OPEN_GAP_NATS


def is_echoing(text: str, answer: Answer) -> bool:
    """The greedy answer begins with a token of the prompt."""
    return bool(answer.first.text.strip()) and answer.first.text.strip() in text


def is_short(text: str, answer: Answer) -> bool:
    """The model ends its answer by itself, after more than one token."""
    return answer.first.finish_reason == "stop" and len(answer.first.text) > 1


SUITS: dict[str, Callable[[str, Answer], bool]] = {
    "open": is_open,
    "echoing": is_echoing,
    "short": is_short,
}
