"""Faults in what a server answers: shapes, counts, events and headers."""

from collections.abc import Callable
from typing import Any

from tests.conformance.faults import (
    Exchange,
    Fault,
    chain,
    drop_header,
    edit_frames,
    edit_json,
    set_header,
    set_status,
)

Edit = Callable[[Any], Any]


def answers(id: str, why: str, function: Edit, status: int | None = None) -> Fault:
    return Fault(id, why, response=edit_json(function, status))


def both(id: str, why: str, of_choice: Edit) -> Fault:
    """Over every choice, of whole answers and of chunks."""

    def whole(answer: Any) -> None:
        for choice in choices(answer):
            of_choice(choice)

    def chunks(found: list[Any]) -> None:
        for chunk in found:
            whole(chunk)

    return Fault(id, why, response=edit_json(whole), frames=edit_frames(chunks))


def choices(answer: Any) -> list[Any]:
    return (answer.get("choices") or []) if isinstance(answer, dict) else []


def of_usage(id: str, why: str, function: Edit) -> Fault:
    def edit(part: Any) -> None:
        if isinstance(part, dict) and part.get("usage"):
            function(part["usage"])

    def edit_all(chunks: list[Any]) -> None:
        for chunk in chunks:
            edit(chunk)

    return Fault(id, why, response=edit_json(edit), frames=edit_frames(edit_all))


def without(name: str) -> Edit:
    def edit(value: Any) -> None:
        if isinstance(value, dict):
            value.pop(name, None)

    return edit


def replacing(name: str, wanted: Any) -> Edit:
    def edit(value: Any) -> None:
        if isinstance(value, dict) and name in value:
            value[name] = wanted

    return edit


def of_error(function: Edit) -> Edit:
    return lambda answer: (
        function(answer["error"]) if isinstance(answer, dict) and "error" in answer else None
    )


def of_models(function: Callable[[list[Any]], Any]) -> Edit:
    def edit(answer: Any) -> None:
        if isinstance(answer, dict) and isinstance(answer.get("data"), list):
            function(answer["data"])

    return edit


def text_of(choice: Any, change: Callable[[str], str]) -> None:
    for place, name in (
        (choice, "text"),
        (choice.get("message"), "content"),
        (choice.get("delta"), "content"),
    ):
        if isinstance(place, dict) and isinstance(place.get(name), str):
            place[name] = change(place[name])


def swapped_finish(choice: Any) -> None:
    other = {"stop": "length", "length": "stop"}
    if choice.get("finish_reason"):
        choice["finish_reason"] = other.get(choice["finish_reason"], "stop")


def without_finish(choice: Any) -> None:
    choice["finish_reason"] = None


def without_message_role(choice: Any) -> None:
    if "message" in choice:
        del choice["message"]["role"]


def broken_characters(text: str) -> str:
    return "".join(char if ord(char) < 128 else "\ufffd" for char in text)


def leaks(text: str) -> str:
    return text + " e" if text else text


def without_logprobs_entry(choice: Any) -> None:
    entries = choice.get("logprobs") or {}
    for name in ("content", "tokens", "token_logprobs", "top_logprobs"):
        if entries.get(name):
            entries[name] = entries[name][:-1]


def logprobs_always(choice: Any) -> None:
    if choice.get("logprobs") is None:
        choice["logprobs"] = {
            "content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}]
        }
        if "text" in choice:
            choice["logprobs"] = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None}


def unlikely(choice: Any) -> None:
    entries = choice.get("logprobs") or {}
    for entry in entries.get("content") or ():
        entry["logprob"] -= 5
    if entries.get("token_logprobs"):
        entries["token_logprobs"] = [value and value - 5 for value in entries["token_logprobs"]]


def other_tokens(choice: Any) -> None:
    entries = choice.get("logprobs") or {}
    for entry in entries.get("content") or ():
        entry["token"] = "?"
    if entries.get("tokens"):
        entries["tokens"] = ["?"] * len(entries["tokens"])


def positive(choice: Any) -> None:
    entries = choice.get("logprobs") or {}
    for entry in entries.get("content") or ():
        entry["logprob"] = 0.5
    if entries.get("token_logprobs"):
        entries["token_logprobs"] = [0.5] * len(entries["token_logprobs"])


def an_echo_less(choice: Any) -> None:
    text_of(choice, lambda text: text[3:])


def not_a_stream(exchange: Exchange) -> None:
    if exchange.streamed:
        set_header("content-type", "text/plain")(exchange)


def keep_request(exchange: Exchange) -> None:
    """With a hook for it, the request's body is at hand when the answer comes."""


def error_as_a_stream(exchange: Exchange) -> None:
    if exchange.status >= 400 and isinstance(exchange.asked, dict) and exchange.asked.get("stream"):
        exchange.status = 200
        exchange.answer = b"data: " + exchange.answer + b"\n\n"
        set_header("content-type", "text/event-stream")(exchange)


def repeats_the_key(exchange: Exchange) -> None:
    keys = [value.decode() for name, value in exchange.headers if name == b"authorization"]
    edit_json(of_error(lambda error: error.update(message=f"{error['message']} {keys}")))(exchange)


def idle_at_all_times(exchange: Exchange) -> None:
    if exchange.path == "/metrics":
        exchange.answer = b'tenuto_engine_unfinished_requests{model="demo"} 0.0\n'


def of_json(exchange: Exchange) -> bool:
    return not exchange.streamed


def error_with(name: str, value: Any, status: int | None = None) -> Edit:
    return of_error(lambda error: error.update({name: value}))


def detail(answer: Any) -> Any:
    return (
        {"detail": answer["error"]["message"]}
        if isinstance(answer, dict) and "error" in answer
        else None
    )


def twice(rows: list[Any]) -> None:
    rows.extend(rows[:1])


ANSWERED = [
    both("swaps-finish-reasons", "stop is length, and length stop.", swapped_finish),
    both("never-finishes", "finish_reason is null.", without_finish),
    both(
        "numbers-from-1", "Choices are numbered from 1.", lambda c: c.update(index=c["index"] + 1)
    ),
    both("says-nothing", "Every text is empty.", lambda c: text_of(c, lambda text: "")),
    both("breaks-characters", "Only ASCII survives.", lambda c: text_of(c, broken_characters)),
    both("hides-token-ids", "Token ids are not shown.", without("token_ids")),
    both("loses-a-logprob", "One entry is missing.", without_logprobs_entry),
    both("adds-logprobs", "Log-probabilities that nobody asked for.", logprobs_always),
    both("wrong-logprobs", "The chosen token's is too low.", unlikely),
    both("positive-logprobs", "Log-probabilities are above 0.", positive),
    both("other-tokens", "The entries name other tokens.", other_tokens),
    both("cuts-the-beginning", "Three characters are missing.", an_echo_less),
    both("no-role-in-the-message", "The message has no role.", without_message_role),
    answers("one-id", "Every answer has one id.", replacing("id", "the-id")),
    answers("no-created", "created is missing.", without("created")),
    answers("another-object", "object is wrong.", replacing("object", "thing")),
    answers("another-model", "The answer names another model.", replacing("model", "other")),
    answers("no-usage", "usage is missing.", without("usage")),
    of_usage(
        "usage-of-zeros",
        "Every count is 0.",
        lambda u: u.update(prompt_tokens=0, completion_tokens=0, total_tokens=0),
    ),
    of_usage(
        "usage-does-not-add-up",
        "The total is one more.",
        lambda u: u.update(total_tokens=u["total_tokens"] + 1),
    ),
    of_usage(
        "counts-one-completion-more",
        "One completion token too many.",
        lambda u: u.update(completion_tokens=u["completion_tokens"] + 1),
    ),
    of_usage(
        "counts-prompts-as-one", "prompt_tokens is always 1.", lambda u: u.update(prompt_tokens=1)
    ),
    of_usage(
        "counts-one-choice",
        "Completion tokens of one choice.",
        lambda u: u.update(completion_tokens=min(4, u["completion_tokens"])),
    ),
    answers("errors-in-detail", "Errors have another shape.", detail),
    answers(
        "code-is-a-number",
        "The envelope's code is an integer.",
        of_error(lambda e: e.update(code=int(e["code"]))),
    ),
    answers("blames-nobody", "param is always null.", error_with("param", None)),
    answers("one-type", "Every error has one type.", error_with("type", "error")),
    answers(
        "one-message", "Every error says the same.", error_with("message", "Something went wrong.")
    ),
    answers(
        "shows-its-insides",
        "Errors carry a traceback.",
        error_with("message", 'Traceback: File "/srv/app/site-packages/x.py"'),
    ),
    Fault("repeats-the-key", "Errors repeat the key.", response=repeats_the_key),
    Fault(
        "unprocessable", "422 in place of 400.", response=set_status(422, lambda e: e.status == 400)
    ),
    Fault(
        "all-is-well",
        "Errors have status 200.",
        response=set_status(200, lambda e: e.status >= 400),
    ),
    Fault("forbidden", "403 in place of 401.", response=set_status(403, lambda e: e.status == 401)),
    Fault("gone", "410 in place of 404.", response=set_status(410, lambda e: e.status == 404)),
    Fault(
        "system-prompt-400",
        "The documented 500 is a 400.",
        response=set_status(400, lambda e: e.status == 500),
    ),
    Fault(
        "text-html",
        "JSON has another media type.",
        response=chain(
            lambda e: set_header("content-type", "text/html")(e) if of_json(e) else None
        ),
    ),
    answers("models-twice", "A model is listed twice.", of_models(twice)),
    answers("empty-list", "The list is empty.", of_models(lambda rows: rows.clear())),
    answers("no-object-of-the-list", "The list does not say that it is one.", without("object")),
    answers(
        "models-of-now",
        "created is now, owned_by the owner.",
        of_models(
            lambda rows: [row.update(created=1, owned_by="me") for row in rows if "created" in row]
        ),
    ),
    answers(
        "counts-one-token-more",
        "The counter is off by one.",
        lambda a: (
            a.update(total_tokens=a["total_tokens"] + 1)
            if isinstance(a, dict) and "total_tokens" in a
            else None
        ),
    ),
    answers("counts-one-token", "The counter always says 1.", replacing("total_tokens", 1)),
    answers(
        "another-tokenizer",
        "Another tokenizer counted.",
        replacing("tokenizer_type", "openai_tokenizer"),
    ),
    answers("counts-for-nobody", "request_model is missing.", without("request_model")),
    answers("detokenizes-nothing", "The text is missing.", replacing("prompt", "")),
    answers(
        "no-prompt-logprobs",
        "The first prompt token's is missing.",
        lambda a: (
            [c.update(prompt_logprobs=(c.get("prompt_logprobs") or [None])[1:]) for c in choices(a)]
            and without("prompt_logprobs")(a)
        ),
    ),
    Fault(
        "never-allows-origins",
        "No CORS header.",
        response=drop_header("access-control-allow-origin"),
    ),
    Fault(
        "star-with-credentials",
        "Every origin, with credentials.",
        response=chain(
            set_header("access-control-allow-origin", "*"),
            set_header("access-control-allow-credentials", "true"),
        ),
    ),
    Fault("no-request-id", "No id of the request.", response=drop_header("x-request-id")),
    Fault(
        "one-request-a-connection",
        "The connection is closed.",
        response=set_header("connection", "close"),
    ),
    Fault("looks-idle", "The metrics never show a request.", response=idle_at_all_times),
    Fault("buffered", "Proxies may keep the stream.", response=drop_header("cache-control")),
    Fault("stream-of-text", "A stream is text/plain.", response=not_a_stream),
    Fault("error-as-a-stream", "An error comes as a stream.", keep_request, error_as_a_stream),
]
