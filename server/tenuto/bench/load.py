"""What is asked, and when: closed loop or Poisson arrivals, over a fixed number of streams."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Annotated, Any

import msgspec
from typer import Option

from tenuto.bench.client import Address, Answer, Client

# One token each for most models.
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as")
ROUTES = {"chat": "chat/completions", "completions": "completions"}
MAX = 1_000_000

Count = Annotated[int, Option(min=1, max=MAX)]
Limit = Annotated[float | None, Option(min=0, max=1e9, help="Slower is no goodput.")]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What every target gets; each field is an option of `tenuto bench`. A round asks for
    `duration` seconds, or `requests` times."""

    model: Annotated[str, Option(help="The model to ask.")]
    endpoint: Annotated[str, Option(help=" or ".join(ROUTES))] = "chat"
    stream: bool = True
    streams: Annotated[int, Option(min=1, max=4096, help="Requests at a time.")] = 32
    requests: Annotated[int | None, Option(min=1, max=MAX, help="Of a round.")] = None
    duration: Annotated[float | None, Option(min=0.01, max=86_400, help="10 s by default.")] = None
    rate: Annotated[float | None, Option(min=1e-3, max=1e5, help="Poisson arrivals per s.")] = None
    max_tokens: Count = 128
    prompt_words: Count = 32
    body: dict[str, Any] = field(default_factory=dict)
    rounds: Annotated[int, Option(min=1, max=1000, help="Of each target.")] = 5
    warmup: Annotated[int, Option(min=0, max=MAX, help="Requests that do not count.")] = 8
    timeout: Annotated[float, Option(min=0.1, max=86_400, help="Of an answer, in seconds.")] = 120
    seed: int = 0
    goodput_ttft_ms: Limit = None
    goodput_itl_ms: Limit = None

    @property
    def route(self) -> str:
        """Errors: KeyError."""
        return ROUTES[self.endpoint]

    def content(self, turn: int, number: int) -> bytes:
        """The same for all targets. No two are the same: their prompts are in no cache."""
        random = Random(f"{self.seed} {turn} {number}")
        prompt = " ".join(random.choices(WORDS, k=self.prompt_words))
        asked = {"messages": [{"role": "user", "content": prompt}]}
        body = {"model": self.model, "max_tokens": self.max_tokens}
        body |= asked if self.endpoint == "chat" else {"prompt": prompt}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(body | self.body)

    def arrivals(self, turn: int, began: float = 0) -> Iterator[tuple[int, float]]:
        """When each request is due: now, whenever a stream is free to ask for the next; or after
        the gaps of Poisson arrivals, which are exponential with a mean of 1 / rate."""
        random, due = Random(f"{self.seed} {turn}"), began
        for number in count() if self.requests is None else range(self.requests):
            due = due + random.expovariate(self.rate) if self.rate else time.monotonic()
            if self.duration is not None and due >= began + self.duration:
                return
            yield number, due


async def ask_all(
    address: Address, load: Load, turn: int, on_answer: Callable[[Answer], None]
) -> None:
    """One round, the same for each target in the same turn. An arrival that finds no stream free
    waits for one, and what it waited counts: a slow server would otherwise be asked less often, and
    look fast ("coordinated omission")."""

    async def stream(client: Client) -> None:
        for number, due in arrivals:
            content = load.content(turn, number)
            # uvloop may wake too early, by less than a millisecond.
            while (rest_s := due - time.monotonic()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(rest_s)
            on_answer(answer := await client.ask(content, due))
            if answer.error == "connection":
                await asyncio.sleep(0.1)  # Not thousands of times a second where no server is.

    with ExitStack() as opened:
        streams = range(min(load.streams, load.requests or MAX))
        clients = [opened.enter_context(closing(Client(address, load.timeout))) for _ in streams]
        # Connecting is not what is measured; what fails now fails again with a request.
        await asyncio.gather(*(client.connect() for client in clients), return_exceptions=True)
        arrivals = load.arrivals(turn, time.monotonic())
        await asyncio.gather(*map(stream, clients))
