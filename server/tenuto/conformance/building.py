"""From a case's data to the requests that are sent to one server."""

from collections.abc import Mapping
from typing import Any

from tenuto.conformance.cases import Case, Way
from tenuto.conformance.exchange import Request
from tenuto.conformance.facts import Facts

METHODS = ("get", "post", "put", "delete", "options", "head")
# What the runner reads of `http`, and the request does not hold.
RUNNERS = ("leave_after", "connection", "times")
ENDPOINTS = {"chat": "chat/completions", "completions": "completions"}
DEFAULT_MAX_TOKENS = 16
# The tokens of a text are estimated from above, for the cost: no tokenizer is at hand.
BYTES_PER_TOKEN = 2


def requests_of(case: Case, facts: Facts) -> dict[str, Request]:
    """The case's requests by name. Errors: `KeyError` for a need that the server does not meet."""
    return {name: request_of(spec, case.way, facts) for name, spec in case.send.items()}


def request_of(spec: Mapping[str, Any], way: Way | None, facts: Facts) -> Request:
    """`http` says how it is sent; every other key is a field of the body."""
    http = dict(spec.get("http", {}))
    fields = filled({key: value for key, value in spec.items() if key != "http"}, facts, way)
    method = next((method for method in METHODS if method in http), "post")
    path = filled(http.pop(method, None), facts, way)
    path = path and path.replace("{endpoint}", ENDPOINTS.get(endpoint(way), ""))
    body = _asked(fields, way, facts) if way and not path else fields
    omitted = http.pop("omit", ())
    body = {name: value for name, value in body.items() if name not in omitted}
    how = {name: value for name, value in http.items() if name not in RUNNERS}
    return Request(
        method.upper(),
        path or f"/v1/{ENDPOINTS[endpoint(way)]}",
        body or None,
        **filled(how, facts, way),
    )


def endpoint(way: Way | None) -> str:
    return (way or "").removesuffix("-stream")


def _asked(fields: dict[str, Any], way: Way, facts: Facts) -> dict[str, Any]:
    """A body of the way's endpoint; `ask` names one of the prompts."""
    text = facts.prompt(fields.pop("ask", "any"), endpoint(way))
    if endpoint(way) == "chat":
        prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    else:
        prompt = {"prompt": text}
    stream: dict[str, Any] = {"stream": True} if way.endswith("-stream") else {}
    if stream and "stream_options" not in fields:
        stream["stream_options"] = {"include_usage": True}
    body = {"model": facts.model, "max_tokens": DEFAULT_MAX_TOKENS, **prompt, **stream, **fields}
    if "logprobs" in fields and endpoint(way) == "chat":
        body |= {"logprobs": True, "top_logprobs": fields["logprobs"]}
    return body


def filled(value: Any, facts: Facts, way: Way | None = None) -> Any:
    """`{model}` and the like become the server's; `{repeat: X, times: N}` is written out, `context`
    times as many as the model's context has tokens."""
    match value:
        case "{id_a}" | "{id_b}":
            return int(facts.fill(value))
        case str():
            return facts.fill(value, endpoint(way))
        case {"repeat": item, "times": times}:
            count = facts.context or 0 if times == "context" else int(times)
            return (item if isinstance(item, str) else [filled(item, facts, way)]) * count
        case dict():
            return {
                facts.fill(key) if isinstance(key, str) else key: filled(inner, facts, way)
                for key, inner in value.items()
            }
        case list():
            return [filled(item, facts, way) for item in value]
        case _:
            return value


def max_cost(request: Request) -> int:
    """An upper bound of the tokens that a request can cost: prompt and completions."""
    body = request.body
    if not isinstance(body, dict) or not ({"prompt", "messages"} & body.keys()):
        return 0
    if not request.path.endswith("/completions"):
        return 0
    prompts = body.get("prompt", body.get("messages"))
    num_prompts = len(prompts) if isinstance(prompts, list) and "prompt" in body else 1
    sequences = max(_count(body, "n"), _count(body, "best_of"))
    prompt_tokens = len(str(prompts).encode()) // BYTES_PER_TOKEN
    usual = _count(body, "max_tokens", DEFAULT_MAX_TOKENS)
    return prompt_tokens + num_prompts * sequences * _count(body, "max_completion_tokens", usual)


def _count(body: Mapping[str, Any], name: str, default: int = 1) -> int:
    value = body.get(name, default)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1
