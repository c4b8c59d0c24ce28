"""Faults in how a server reads requests: what it ignores, mistakes, or lets through."""

from collections.abc import Callable
from typing import Any

from tests.conformance.faults import Exchange, Fault, Hook, drop_fields, edit_body

GOOD: dict[str, Any] = {"model": "demo", "max_tokens": 4}
HELLO = [{"role": "user", "content": "Hello!"}]
HONEST_KEY = "sk-toy-key-for-tests"
LIMITED_KEY = "sk-toy-key-with-a-limit"


def ignores(*names: str) -> Fault:
    return Fault(f"ignores-{names[0]}", f"{', '.join(names)}: no effect.", drop_fields(*names))


def edits(id: str, why: str, function: Callable[[dict[str, Any]], object]) -> Fault:
    return Fault(id, why, request=edit_body(function))


def when(name: str, value: Any, **fields: Any) -> Callable[[dict[str, Any]], object]:
    """Sets the fields of a body whose `name` is `value`."""
    return lambda body: body.update(fields) if body.get(name) == value else None


def when_absent(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: body.update(fields) if name not in body else None


def replaced_by_presence(body: dict[str, Any]) -> None:
    if (body.pop("repetition_penalty", 1) or 1) > 1:
        body["presence_penalty"] = 2


def replaced_by_repetition(body: dict[str, Any]) -> None:
    if (body.pop("presence_penalty", 0) or 0) > 0:
        body["repetition_penalty"] = 50


def all_candidates(body: dict[str, Any]) -> None:
    if (body.get("best_of") or 0) > (body.get("n") or 1):
        body["n"] = body["best_of"]


def first_stop_alone(body: dict[str, Any]) -> None:
    if isinstance(body.get("stop"), list):
        body["stop"] = body["stop"][:1]


def short_stops_alone(body: dict[str, Any]) -> None:
    """As a server that looks for stop strings in single tokens."""
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    if isinstance(body.get("stop"), list):
        body["stop"] = [stop for stop in body["stop"] if len(stop) == 1]


def first_prompt_alone(body: dict[str, Any]) -> None:
    if isinstance(body.get("prompt"), list):
        body["prompt"] = body["prompt"][0]


def prompts_reversed(body: dict[str, Any]) -> None:
    if isinstance(body.get("prompt"), list):
        body["prompt"].reverse()


def ids_as_text(body: dict[str, Any]) -> None:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
        body["prompt"] = str(prompt)


def without_system(body: dict[str, Any]) -> None:
    if isinstance(body.get("messages"), list):
        turns = [turn for turn in body["messages"] if turn.get("role") != "system"]
        body["messages"] = turns or HELLO


def refuses(id: str, why: str, is_refused: Callable[[dict[str, Any]], bool]) -> Fault:
    def edit(body: dict[str, Any]) -> None:
        if is_refused(body):
            body["temperature"] = -1

    return edits(id, why, edit)


def has_parts(body: dict[str, Any]) -> bool:
    return any(
        isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in turns(body)
    )


def turns(body: dict[str, Any]) -> list[Any]:
    found = body.get("messages")
    return found if isinstance(found, list) else []


def shortened(body: dict[str, Any]) -> None:
    """A text that is too long is cut, and nobody is told."""
    if isinstance(body.get("prompt"), str):
        body["prompt"] = body["prompt"][:6000]
    for turn in turns(body):
        if isinstance(turn.get("content"), str):
            turn["content"] = turn["content"][:6000]


def mended_messages(body: dict[str, Any]) -> None:
    if not turns(body) and "prompt" not in body:
        body["messages"] = HELLO
    for turn in turns(body):
        if turn.get("role") not in ("system", "user", "assistant"):
            turn["role"] = "user"


def mended_prompt(body: dict[str, Any]) -> None:
    if "messages" not in body and not body.get("prompt"):
        body["prompt"] = "Hello!"


def without_images(body: dict[str, Any]) -> None:
    for turn in turns(body):
        if isinstance(turn.get("content"), list):
            turn["content"] = "".join(part.get("text", "Hm?") for part in turn["content"])


def any_body(exchange: Exchange) -> None:
    """Whatever is no JSON object is taken for a request that says nothing."""
    if exchange.method == "POST" and not isinstance(exchange.asked, dict):
        what = (
            '"messages":[{"role":"user","content":"Hi"}]'
            if "chat" in exchange.path
            else '"prompt":"Hi"'
        )
        exchange.body = f'{{"model":"demo","max_tokens":2,{what}}}'.encode()


def any_key(exchange: Exchange) -> None:
    others = [header for header in exchange.headers if header[0] != b"authorization"]
    exchange.headers = [*others, (b"authorization", f"Bearer {HONEST_KEY}".encode())]


def any_bearer(exchange: Exchange) -> None:
    if any(name == b"authorization" for name, _ in exchange.headers):
        any_key(exchange)


def elsewhere(part: str) -> Hook:
    def edit(exchange: Exchange) -> None:
        if part in exchange.path:
            exchange.path = "/nowhere"

    return edit


def no_route(name: str, part: str) -> Fault:
    return Fault(f"no-{name}", f"{part} is not served.", request=elsewhere(part))


def only_v1(exchange: Exchange) -> None:
    if exchange.path in ("/models", "/chat/completions", "/completions"):
        exchange.path = "/nowhere"


def one_model_is_like_another(exchange: Exchange) -> None:
    exchange.path = exchange.path.replace("no-such-model", "demo")


def any_method(exchange: Exchange) -> None:
    exchange.method = "POST" if "completions" in exchange.path else "GET"


def any_path(exchange: Exchange) -> None:
    if "no/such" in exchange.path:
        exchange.path = "/v1/models"


NARROW = {"top_k": 1}
IGNORED = """
temperature top_p top_k min_p seed n best_of presence_penalty frequency_penalty repetition_penalty
stop max_tokens max_completion_tokens min_tokens detokenize skip_special_tokens echo logit_bias
response_format structured_outputs ignore_eos include_stop_str_in_output stop_token_ids
prompt_logprobs return_token_ids truncate_prompt_tokens stream_options stream
"""
ASKED = [
    *(ignores(name) for name in IGNORED.split()),
    ignores("logprobs", "top_logprobs"),
    ignores("tools", "tool_choice"),
    ignores("tool_choice"),
    edits("always-greedy", "Nothing is random.", lambda body: body.update(NARROW)),
    edits("minus-1-is-1", "top_k -1 is taken for 1.", when("top_k", -1, top_k=1)),
    edits("top_p-1-is-off-by-much", "top_p 1 is taken for 0.0001.", when("top_p", 1, top_p=1e-4)),
    edits("min_p-0-is-1", "min_p 0 is taken for 1.", when("min_p", 0, min_p=1)),
    edits("one-seed", "Every request has one seed.", when_absent("nothing", seed=1)),
    edits("counts-the-answer-alone", "repetition_penalty spares the prompt.", replaced_by_presence),
    edits("counts-the-prompt", "presence_penalty counts the prompt.", replaced_by_repetition),
    edits("returns-all-candidates", "best_of of them, not n.", all_candidates),
    edits("short-stops-alone", "Stop strings of one character alone are found.", short_stops_alone),
    edits("first-stop-alone", "Of the stop strings the first.", first_stop_alone),
    edits(
        "no-text", "detokenize true is taken for false.", when("detokenize", True, detokenize=False)
    ),
    edits(
        "shows-special-tokens",
        "skip_special_tokens is false unless said.",
        when_absent("skip_special_tokens", skip_special_tokens=False),
    ),
    edits("first-prompt-alone", "Of the prompts the first.", first_prompt_alone),
    edits("prompts-reversed", "The last prompt comes first.", prompts_reversed),
    edits("ids-as-text", "Token ids are taken for text.", ids_as_text),
    edits("no-system-prompt", "System messages are left out.", without_system),
    edits(
        "no-long-answers",
        "At most 256 tokens.",
        lambda b: b.update(max_tokens=256) if b.get("max_tokens", 0) > 256 else None,
    ),
    refuses(
        "refuses-large-max_tokens",
        "max_tokens of 5,000 is refused.",
        lambda b: isinstance(b.get("max_tokens"), int) and b["max_tokens"] > 5000,
    ),
    refuses("refuses-parts", "A content of parts is refused.", has_parts),
    refuses("refuses-user", "user is refused.", lambda b: "user" in b),
    refuses(
        "refuses-null", "A parameter that is null is refused.", lambda b: b.get("top_p", 1) is None
    ),
    refuses(
        "refuses-other-back-ends", "An unknown field is refused.", lambda b: "mirostat_mode" in b
    ),
    refuses(
        "refuses-assistants",
        "A turn of the assistant is refused.",
        lambda b: any(t.get("role") == "assistant" for t in turns(b) if isinstance(t, dict)),
    ),
    refuses(
        "refuses-system-prompts",
        "A system message is refused.",
        lambda b: any(t.get("role") == "system" for t in turns(b) if isinstance(t, dict)),
    ),
    refuses(
        "refuses-unicode",
        "A prompt beyond ASCII is refused.",
        lambda b: not str(b.get("messages", "")).isascii(),
    ),
    edits("cuts-long-prompts", "A prompt that is too long is cut.", shortened),
    edits("any-messages", "Messages that are wrong are mended.", mended_messages),
    edits("any-prompt", "A missing prompt is made up.", mended_prompt),
    edits("sees-nothing", "Images are left out.", without_images),
    edits(
        "no-continuation",
        "The last turn is closed.",
        lambda b: (
            b.update(continue_final_message=False, add_generation_prompt=True)
            if "continue_final_message" in b
            else None
        ),
    ),
    edits("a-model-for-none", "A missing model is made up.", when_absent("model", model="demo")),
    edits(
        "a-model-for-another",
        "An unknown model is taken for the first.",
        when("model", "no-such-model", model="demo"),
    ),
    Fault(
        "any-model-is-listed", "An unknown model is described.", request=one_model_is_like_another
    ),
    Fault("any-body", "Anything is taken for a request.", request=any_body),
    Fault("no-key-needed", "No key is needed.", request=any_key),
    Fault("any-key", "Any key is good.", request=any_bearer),
    Fault("any-method", "The method does not matter.", request=any_method),
    Fault("any-path", "Every path is served.", request=any_path),
    Fault("only-v1", "Nothing is served without /v1.", request=only_v1),
    no_route("engines", "/engines/"),
    no_route("deployments", "/openai/deployments/"),
    no_route("model-in-the-path", "/v1/demo/"),
    no_route("model-info", "/model/info"),
    no_route("one-model", "/v1/models/demo"),
    no_route("models", "/models"),
    no_route("chat", "/chat/completions"),
    no_route("completions", "/completions"),
    no_route("token-counter", "/utils/token_counter"),
    no_route("tokenize", "/tokenize"),
    no_route("detokenize", "/detokenize"),
    no_route("liveliness", "/health"),
    Fault("deaf", "A client that leaves is not noticed.", shield_disconnect=True),
]
