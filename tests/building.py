"""Requests, plans and verdicts, as the fast tests write them down."""

from typing import Any

from tenuto.engine.types import ModelFacts, Sampling
from tenuto.errors import ApiError
from tenuto.generation.endpoint import CHAT, COMPLETION, Endpoint
from tenuto.generation.translate import Plan
from tenuto.wire.bounds import Bounds
from tenuto.wire.parse import parse
from tenuto.wire.requests import ChatRequest, CompletionRequest

FACTS = ModelFacts(max_model_len=100, vocab_size=256)
BOUNDS = Bounds()
ENDPOINTS = {"chat": CHAT, "completion": COMPLETION}
PROMPTS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "completion": {"prompt": "Hi"},
}


def body(kind: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", **PROMPTS[kind], **fields}


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, body("chat", **fields), CHAT.route)


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, body("completion", **fields), COMPLETION.route)


def plan(kind: str, facts: ModelFacts = FACTS, bounds: Bounds = BOUNDS, /, **fields: Any) -> Plan:
    """What a judged request asks of the engine. Errors: `ApiError`."""
    endpoint: Endpoint = ENDPOINTS[kind]
    request = parse(endpoint.kind, body(kind, **fields), endpoint.route)
    endpoint.judge(request, bounds)
    return endpoint.plan(request, facts, bounds)


def sampling(kind: str, facts: ModelFacts = FACTS, /, **fields: Any) -> Sampling:
    return plan(kind, facts, **fields).sampling


def refusal(kind: str, bounds: Bounds = BOUNDS, /, **fields: Any) -> ApiError | None:
    """The error that a request gets before any engine is asked; None when it is accepted."""
    try:
        plan(kind, FACTS, bounds, **fields)
    except ApiError as error:
        return error
    return None


def refused(kind: str, bounds: Bounds = BOUNDS, /, **fields: Any) -> ApiError:
    error = refusal(kind, bounds, **fields)
    assert error is not None, "accepted"
    return error
