"""One request and everything that came back: what cases send, recordings hold and checks read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

DONE = "[DONE]"
Auth = Literal["key", "limited", "none", "wrong", "malformed"]


class Broken(Exception):
    """A requirement that an answer does not meet; the message is the report's."""


class Unsuitable(Broken):
    """The answer meets no requirement and breaks none: this model cannot show it."""


@dataclass(frozen=True)
class Request:
    """`body` is sent as JSON, `raw` as it stands, a byte for each character. `auth` says what
    stands for the key, so that no recording ever holds one. `until` repeats a look at the metrics,
    for `within_s` at most, until a request runs, or none does; `limited` repeats any request until
    its key's limit is met. For one that is not `patient` a 429 is an answer, and not waited for."""

    method: str
    path: str
    body: Any = None
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    auth: Auth = "key"
    until: Literal["busy", "idle", "limited"] | None = None
    within_s: float = 5.0
    patient: bool = True

    @property
    def content(self) -> bytes | None:
        if self.raw is not None:
            return self.raw.encode("latin-1")
        return None if self.body is None else json.dumps(self.body, ensure_ascii=False).encode()


@dataclass
class Exchange:
    """`failure` says why there is no whole answer; `status` is None without any. Header names are
    in lower case. `connection` tells the connections of one run apart. `left`: the client went away
    before the answer was whole, as the case wanted. `untried`: the server was not asked, or asked
    to wait again and again. `first_s` is when the first piece of the body came."""

    request: Request
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    failure: str | None = None
    elapsed_s: float = 0.0
    connection: int = 0
    left: bool = False
    untried: bool = False
    first_s: float | None = None

    @property
    def is_stream(self) -> bool:
        """Asked for as a stream, and answered as one or not."""
        body = self.request.body
        return isinstance(body, dict) and body.get("stream") is True

    @cached_property
    def json(self) -> Any:
        """Errors: `Broken` unless the whole answer came, and is JSON."""
        self.require_whole()
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            raise Broken(f"the answer is not JSON: {shortened(self.text)}") from None

    @cached_property
    def events(self) -> list[str]:
        """The data of every server-sent event, `[DONE]` included; comments are left out.

        Errors: `Broken` for anything that is neither.
        """
        self.require_whole()
        return list(events_in(self.text))

    @cached_property
    def chunks(self) -> list[dict[str, Any]]:
        """The parsed events of a stream, without `[DONE]`. Errors: `Broken`, also without any."""
        chunks = [parsed(event) for event in self.events if event != DONE]
        if not chunks:
            raise Broken(f"the stream has no chunks: {shortened(self.text)}")
        return chunks

    def require_whole(self) -> None:
        if self.failure is not None:
            raise Broken(self.failure)


def events_in(text: str) -> Iterator[str]:
    """As browsers and OpenAI's client read them: one that no blank line ends is not an event."""
    blocks = text.replace("\r\n", "\n").split("\n\n")
    for number, block in enumerate(blocks, start=1):
        data = [line for line in block.split("\n") if line and not line.startswith(":")]
        if wrong := next((line for line in data if not line.startswith(SSE_FIELDS)), None):
            raise Broken(f"a line of the stream is no server-sent event: {shortened(wrong)}")
        values = [line[5:].removeprefix(" ") for line in data if line.startswith("data:")]
        if values and number < len(blocks):
            yield "\n".join(values)


def parsed(event: str) -> dict[str, Any]:
    try:
        chunk = json.loads(event)
    except (ValueError, RecursionError):
        raise Broken(f"an event of the stream is not JSON: {shortened(event)}") from None
    if not isinstance(chunk, dict):
        raise Broken(f"an event of the stream is not an object: {shortened(event)}")
    return chunk


def shortened(value: Any, limit: int = 120) -> str:
    """For messages: JSON, in one line, of bounded length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


SSE_FIELDS = ("data:", "event:", "id:", "retry:")
