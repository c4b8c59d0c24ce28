"""What differs between two answers to one request, as far as clients can depend on it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenuto.conformance.answer import folded
from tenuto.conformance.exchange import DONE, Broken, Exchange, shortened

ABSENT, PRESENT, EMPTY, ARRAY = "absent", "present", "[]", "array"
MAX_SHOWN, MAX_DEPTH = 60, 40
# Fields whose value is compared wherever they are; of all others only the type is.
ENUMS = frozenset({"object", "role"})
# What the text decides: comparable only where both sides must generate the same one.
DECIDED_BY_TEXT = frozenset({"finish_reason", "stop_reason"})
ERROR_FIELDS = frozenset({"error.type", "error.param", "error.code"})
# The keys of this map are tokens, not names.
TOKEN_MAP = "logprobs.top_logprobs[]"
# By path, what was seen there: types of JSON, or values where they are compared.
Shape = dict[str, set[str]]
Kinds = dict[str, list[Any]]


@dataclass(frozen=True)
class Difference:
    """`aspect` is a path of the answer or says what is compared; `a` and `b` are short."""

    aspect: str
    a: str
    b: str


def differences(a: Exchange, b: Exchange, same_checkpoint: bool = False) -> list[Difference]:
    """Two models may say different things, so that texts, and what depends on them, are compared
    only when both serve the same checkpoint."""
    if a.left or b.left:
        return []
    found = _compared("status", _status(a), _status(b)) or _compared("answer", _end(a), _end(b))
    if found or a.failure is not None:
        return found
    is_stream = a.is_stream and a.status == 200
    same_question = same_checkpoint and _asked(a) == _asked(b)
    is_decided = same_question and _is_greedy(a)
    found = list(_headers(a, b, is_stream))
    if is_stream:
        found += _streams(a, b, is_decided)
    else:
        found += _bodies(a, b, is_decided)
    return found + list(_counts(a, b, same_question)) + list(_texts(a, b, is_decided))


def _status(exchange: Exchange) -> str:
    if exchange.status is not None:
        return str(exchange.status)
    return _cut(exchange.failure or "no answer")


def _end(exchange: Exchange) -> str:
    return "whole" if exchange.failure is None else _cut(exchange.failure)


def _headers(a: Exchange, b: Exchange, is_stream: bool) -> Iterator[Difference]:
    """The media type, and what tells clients and proxies what to do."""
    kinds = [e.headers.get("content-type", ABSENT).partition(";")[0].strip() for e in (a, b)]
    yield from _compared("header content-type", *kinds)
    waits = [PRESENT if "retry-after" in e.headers else ABSENT for e in (a, b)]
    yield from _compared("header retry-after", *waits)
    for name in ("x-should-retry", *(["cache-control"] if is_stream else [])):
        yield from _compared(f"header {name}", *(e.headers.get(name, ABSENT) for e in (a, b)))


def _bodies(a: Exchange, b: Exchange, is_decided: bool) -> list[Difference]:
    bodies = []
    for exchange in (a, b):
        try:
            bodies.append([exchange.json])
        except Broken:
            bodies.append([])
    if not all(bodies):
        return _compared("body", *("JSON" if body else "not JSON" for body in bodies))
    return _shapes(shape_of(bodies[0], is_decided), shape_of(bodies[1], is_decided))


def _streams(a: Exchange, b: Exchange, is_decided: bool) -> list[Difference]:
    """The order of the events, and the shape of each kind of chunk."""
    try:
        kinds_a, kinds_b = _kinds(a), _kinds(b)
    except Broken:
        return _compared("events", _readable(a), _readable(b))
    found = _compared("events", _order(a), _order(b))
    for kind in kinds_a.keys() & kinds_b.keys():
        shapes = [shape_of(kinds[kind], is_decided) for kinds in (kinds_a, kinds_b)]
        found += [Difference(f"{kind}: {d.aspect}", d.a, d.b) for d in _shapes(*shapes)]
    return sorted(found, key=lambda d: (d.aspect != "events", d.aspect))


def _readable(exchange: Exchange) -> str:
    try:
        return _order(exchange)
    except Broken as broken:
        return _cut(str(broken))


def _kinds(exchange: Exchange) -> Kinds:
    kinds: Kinds = {}
    for chunk in exchange.chunks:
        for _, kind in _told(chunk):
            kinds.setdefault(kind, []).append(chunk)
    return kinds


def _order(exchange: Exchange) -> str:
    """Kinds without repetitions. Choices come between each other as they please, so that of
    several each has its own order."""
    orders: dict[str | None, list[str]] = {}
    for event in exchange.chunks:
        for index, kind in _told(event):
            kinds = orders.setdefault(index, [])
            if kinds[-1:] != [kind]:
                kinds.append(kind)
    ends = orders.pop(None, []) + ["done"] * (exchange.events[-1:] == [DONE])
    choices = dict.fromkeys(" ".join(kinds) for kinds in orders.values())
    return " ".join([" & ".join(choices), *ends]).strip()


def _told(chunk: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """The choices that a chunk tells of, each with what it tells; None: of the whole answer."""
    choices = chunk.get("choices")
    rows = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    telling = [(str(row.get("index")), kind) for row in rows if (kind := _kind(row))]
    if telling:
        yield from telling
    elif "error" in chunk:
        yield None, "error"
    else:
        yield None, "usage" if chunk.get("usage") else "empty"


def _kind(choice: Mapping[str, Any]) -> str | None:
    if choice.get("finish_reason"):
        return "finish"
    delta = choice.get("delta")
    if isinstance(delta, dict) and "role" in delta:
        return "role"
    return "content" if delta or choice.get("text") else None


def shape_of(values: Iterable[Any], is_decided: bool) -> Shape:
    """Of all values together."""
    shape: Shape = {}
    for value in values:
        _add(shape, "", value, is_decided)
    for seen in shape.values():
        # An empty list beside a filled one is a matter of the text.
        if ARRAY in seen:
            seen.discard(EMPTY)
    return shape


def _add(shape: Shape, path: str, value: Any, is_decided: bool) -> None:
    shape.setdefault(path, set()).add(_label(path, value, is_decided))
    if path.endswith(TOKEN_MAP) or path.count(".") + path.count("[]") > MAX_DEPTH:
        return
    if isinstance(value, list):
        for item in value:
            _add(shape, f"{path}[]", item, is_decided)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _add(shape, f"{path}.{key}".lstrip("."), inner, is_decided)


def _label(path: str, value: Any, is_decided: bool) -> str:
    name = path.rpartition(".")[2]
    if name in DECIDED_BY_TEXT and not is_decided:
        return "any"
    if name in ENUMS | DECIDED_BY_TEXT or path in ERROR_FIELDS:
        return _value(value)
    return _type(value)


def _value(value: Any) -> str:
    """A text as it stands, unless it could be taken for another value."""
    if not isinstance(value, str):
        return _cut(json.dumps(value))
    try:
        json.loads(value)
    except ValueError:
        return _cut(value)
    return _cut(json.dumps(value))


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return ARRAY if value else EMPTY
        case _:
            return "object"


def _shapes(a: Shape, b: Shape) -> list[Difference]:
    """Topmost only: what is below a difference differs with it."""
    found = {
        path: Difference(path or "body", *_shown(a.get(path), b.get(path)))
        for path in sorted(a.keys() | b.keys())
        if a.get(path) != b.get(path) and not (path.endswith("[]") and (path in a) != (path in b))
    }
    return [d for path, d in found.items() if not any(_is_below(path, o) for o in found)]


def _shown(a: set[str] | None, b: set[str] | None) -> tuple[str, str]:
    if a is None or b is None:
        return (ABSENT, PRESENT) if a is None else (PRESENT, ABSENT)
    return " or ".join(sorted(a)), " or ".join(sorted(b))


def _is_below(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith((f"{other}.", f"{other}[]")))


def _counts(a: Exchange, b: Exchange, same_question: bool) -> Iterator[Difference]:
    try:
        answers = [folded(exchange) for exchange in (a, b)]
    except Broken:
        return
    yield from _compared("number of choices", *(str(len(answer.choices)) for answer in answers))
    if same_question:
        counts = [answer.usage.get("prompt_tokens") for answer in answers]
        if None not in counts:
            yield from _compared("usage.prompt_tokens", *map(str, counts))


def _texts(a: Exchange, b: Exchange, is_decided: bool) -> Iterator[Difference]:
    if not is_decided:
        return
    try:
        texts = [folded(exchange).texts for exchange in (a, b)]
    except Broken:
        return
    if len(texts[0]) == len(texts[1]) and texts[0] != texts[1]:
        x, y = next((x, y) for x, y in zip(*texts, strict=True) if x != y)
        yield Difference("text", shortened(x, MAX_SHOWN), shortened(y, MAX_SHOWN))


def _asked(exchange: Exchange) -> Any:
    """The question without the model's name, which the two sides may have given differently."""
    body = exchange.request.body
    return {k: v for k, v in body.items() if k != "model"} if isinstance(body, dict) else body


def _is_greedy(exchange: Exchange) -> bool:
    body = exchange.request.body
    return isinstance(body, dict) and body.get("temperature") == 0


def _compared(aspect: str, a: str, b: str) -> list[Difference]:
    return [] if a == b else [Difference(aspect, a, b)]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}\N{HORIZONTAL ELLIPSIS}"
