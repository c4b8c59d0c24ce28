"""One question to a live server in the four ways that the API has, and one shape of answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import pytest

from tests.live.conftest import LiveServer

DONE = "[DONE]"


@dataclass
class Choice:
    """`tokens` and `logprobs` are the entries' own; `token_bytes` only chat has."""

    index: int
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    token_bytes: list[list[int] | None] = field(default_factory=list)

    @property
    def cumulative(self) -> float:
        return sum(self.logprobs)

    def add(self, part: dict[str, Any]) -> None:
        """`part` is a whole choice, or a chunk's."""
        said = part.get("message") or part.get("delta") or part
        self.text += said.get("content") or said.get("text") or ""
        self.finish_reason = part["finish_reason"] or self.finish_reason
        self.stop_reason = part.get("stop_reason") or self.stop_reason
        self.token_ids += part.get("token_ids") or []
        self._add_logprobs(part["logprobs"] or {})

    def _add_logprobs(self, entries: dict[str, Any]) -> None:
        for entry in entries.get("content", ()):
            self.tokens.append(entry["token"])
            self.logprobs.append(entry["logprob"])
            self.token_bytes.append(entry["bytes"])
        self.tokens += entries.get("tokens", ())
        self.logprobs += entries.get("token_logprobs", ())


@dataclass
class Answer:
    choices: list[Choice]
    usage: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]

    @property
    def only(self) -> Choice:
        [choice] = self.choices
        return choice


@dataclass(frozen=True)
class Way:
    """An endpoint, streamed or not. The demo model answers on both; on completions a question is
    continued with a line break and its answer."""

    endpoint: Literal["chat", "completions"]
    stream: bool

    def __str__(self) -> str:
        return f"{self.endpoint}{'-streamed' if self.stream else ''}"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    @property
    def lead(self) -> str:
        return "" if self.endpoint == "chat" else "\n"

    def body(self, prompt: str, *, logprobs: int | None = None, **fields: Any) -> dict[str, Any]:
        if self.stream:
            fields = {"stream": True, "stream_options": {"include_usage": True}, **fields}
        if self.endpoint == "completions":
            return {"prompt": prompt, "max_tokens": 512, "logprobs": logprobs, **fields}
        if logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": logprobs}
        return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 512, **fields}

    def ask(self, server: LiveServer, prompt: str, **fields: Any) -> Answer:
        """With token ids and usage, whichever way."""
        body = {"model": "tenuto-demo", "return_token_ids": True, **self.body(prompt, **fields)}
        response = server.client.post(self.path, json=body)
        assert response.status_code == 200, response.text
        return folded(chunks_of(response)) if self.stream else folded([response.json()])


CHAT, CHAT_STREAMED = Way("chat", False), Way("chat", True)
COMPLETIONS, COMPLETIONS_STREAMED = Way("completions", False), Way("completions", True)
each_way = pytest.mark.parametrize(
    "way", [CHAT, CHAT_STREAMED, COMPLETIONS, COMPLETIONS_STREAMED], ids=str
)


def events_of(response: httpx.Response) -> Iterator[str]:
    """The data of every server-sent event, `[DONE]` included."""
    for event in response.text.split("\n\n"):
        if event.startswith("data: "):
            yield event.removeprefix("data: ")


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    *chunks, done = events_of(response)
    assert done == DONE, done
    return [json.loads(chunk) for chunk in chunks]


def folded(parts: list[dict[str, Any]]) -> Answer:
    """A whole answer, or the chunks of one, as one."""
    choices: dict[int, Choice] = {}
    usage: dict[str, Any] = {}
    for part in parts:
        usage = part.get("usage") or usage
        for choice in part["choices"]:
            choices.setdefault(choice["index"], Choice(choice["index"])).add(choice)
    return Answer([choices[index] for index in sorted(choices)], usage)
