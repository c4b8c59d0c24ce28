"""One shape for an answer of both endpoints, streamed or not: what the checks of content read."""

from dataclasses import dataclass, field
from typing import Any

from tenuto.conformance.exchange import Broken, Exchange, shortened

# What reading an answer of another shape raises; a server may send anything.
UNREADABLE = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RecursionError,
)


@dataclass
class Choice:
    """`tokens` and `logprobs` are the entries' own, `top` the alternatives of each: parts of
    characters may have one text. `token_bytes` only chat has."""

    index: int
    text: str = ""
    reasons: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    token_bytes: list[list[int] | None] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[str, float]]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finish_reason(self) -> str | None:
        return self.reasons[-1] if self.reasons else None

    @property
    def cumulative(self) -> float:
        if not self.logprobs:
            raise Broken("the answer has no log-probabilities, though they were asked for")
        return sum(self.logprobs)

    @property
    def shown_tokens(self) -> list[int] | list[str]:
        """In whichever form the server shows them; empty when it shows none."""
        return self.token_ids or self.tokens

    def add(self, part: dict[str, Any]) -> None:
        """`part` is a whole choice, or a chunk's."""
        said = part.get("message") or part.get("delta") or part
        self.text += said.get("content") or said.get("text") or ""
        self.token_ids += part.get("token_ids") or []
        self.tool_calls += said.get("tool_calls") or []
        if part.get("finish_reason") is not None:
            self.reasons.append(part["finish_reason"])
        self._add_logprobs(part.get("logprobs") or {})

    def _add_logprobs(self, entries: dict[str, Any]) -> None:
        for entry in entries.get("content") or ():
            self.tokens.append(entry["token"])
            self.logprobs.append(entry["logprob"])
            self.token_bytes.append(entry.get("bytes"))
            self.top.append([(t["token"], t["logprob"]) for t in entry.get("top_logprobs") or ()])
        self.tokens += entries.get("tokens") or ()
        # The first token of an echoed prompt has none.
        self.logprobs += [value or 0.0 for value in entries.get("token_logprobs") or ()]
        self.top += [list((top or {}).items()) for top in entries.get("top_logprobs") or ()]


@dataclass
class Answer:
    choices: list[Choice]
    usage: dict[str, Any]

    @property
    def first(self) -> Choice:
        return self.choices[0]

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]

    def used(self, name: str) -> int:
        """Errors: `Broken` without a usage that says so."""
        value = self.usage.get(name)
        if not isinstance(value, int):
            raise Broken(f"usage has no {name}: {shortened(self.usage)}")
        return value


def folded(exchange: Exchange) -> Answer:
    """A whole answer, or the chunks of one. Errors: `Broken` when it is neither."""
    parts = exchange.chunks if exchange.is_stream else [exchange.json]
    try:
        answer = _folded(parts)
    except UNREADABLE as error:
        raise Broken(
            f"the answer lacks what every answer has ({type(error).__name__}: {error}): "
            f"{shortened(parts)}"
        ) from None
    if not answer.choices:
        raise Broken(f"the answer has no choices: {shortened(parts)}")
    return answer


def _folded(parts: list[dict[str, Any]]) -> Answer:
    choices: dict[int, Choice] = {}
    usage: dict[str, Any] = {}
    for part in parts:
        if part.get("error"):
            raise Broken(f"the stream ended with an error: {shortened(part)}")
        usage = part.get("usage") or usage
        for choice in part["choices"]:
            choices.setdefault(choice["index"], Choice(choice["index"])).add(choice)
    return Answer([choices[index] for index in sorted(choices)], usage)
