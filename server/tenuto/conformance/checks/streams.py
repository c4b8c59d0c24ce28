"""The order and the completeness of a stream's events."""

from typing import Any

from tenuto.conformance.checks.registry import each, require, require_equal
from tenuto.conformance.exchange import DONE, Exchange, shortened


@each
def event_stream(exchange: Exchange, wanted: bool) -> None:
    exchange.require_whole()
    kind = exchange.headers.get("content-type", "")
    require(kind.startswith("text/event-stream"), f"content-type is {kind!r}")


@each
def done_last(exchange: Exchange, wanted: bool) -> None:
    """`[DONE]` is the last event, and comes once."""
    events = exchange.events
    require(bool(events) and events[-1] == DONE, f"the last event is {shortened(events[-1:])}")
    require_equal("the number of [DONE] events", events.count(DONE), 1)


@each
def role_first(exchange: Exchange, num_choices: int) -> None:
    """Each choice's first delta says that the assistant speaks."""
    firsts: dict[int, dict[str, Any]] = {}
    for choice in _choices(exchange):
        firsts.setdefault(choice["index"], choice["delta"])
    roles = {index: delta.get("role") for index, delta in firsts.items()}
    require_equal("the first roles", roles, dict.fromkeys(range(num_choices), "assistant"))


@each
def one_finish_each(exchange: Exchange, num_choices: int) -> None:
    """Exactly one chunk ends each choice, and nothing of that choice follows it."""
    ended: list[int] = []
    for choice in _choices(exchange):
        index, ends = choice["index"], choice.get("finish_reason") is not None
        goes_on = index in ended and (ends or _has_text(choice))
        require(not goes_on, f"choice {index} goes on after its finish_reason")
        if ends:
            ended.append(index)
    require_equal("the choices that end", sorted(ended), list(range(num_choices)))


@each
def text_in_every_chunk(exchange: Exchange, wanted: bool) -> None:
    """Clients that join `text` fail on a chunk without it."""
    for choice in _choices(exchange):
        text = choice.get("text")
        require(isinstance(text, str), f"a chunk's text is {shortened(text)}")


@each
def usage_chunk(exchange: Exchange, wanted: str) -> None:
    """`last`: the last chunk has the usage and no choices, and no other has a usage.
    `none`: no chunk has any."""
    with_usage = [i for i, chunk in enumerate(exchange.chunks) if chunk.get("usage")]
    if wanted == "none":
        require(not with_usage, f"{len(with_usage)} chunks have a usage that nobody asked for")
        return
    last = len(exchange.chunks) - 1
    require(with_usage == [last], f"chunks {with_usage} have a usage, not the last alone ({last})")
    require_equal("the usage chunk's choices", exchange.chunks[last].get("choices"), [])


@each
def one_identity(exchange: Exchange, wanted: list[str]) -> None:
    """These fields are the same in every chunk."""
    for name in wanted:
        values = {shortened(chunk.get(name)) for chunk in exchange.chunks}
        require(len(values) == 1, f"the chunks have several values of {name}: {sorted(values)[:3]}")


@each
def begins_early(exchange: Exchange, share: float) -> None:
    """The first piece comes before this share of the time has gone by."""
    exchange.require_whole()
    first_s = exchange.elapsed_s if exchange.first_s is None else exchange.first_s
    require(
        first_s < share * exchange.elapsed_s,
        f"the first piece came after {first_s:.3f} s of {exchange.elapsed_s:.3f} s",
    )


@each
def many_chunks(exchange: Exchange, at_least: int) -> None:
    """The text comes in pieces, not in one."""
    count = sum(1 for choice in _choices(exchange) if _has_text(choice))
    require(count >= at_least, f"the text came in {count} pieces")


def _choices(exchange: Exchange) -> list[dict[str, Any]]:
    return [choice for chunk in exchange.chunks for choice in chunk.get("choices") or ()]


def _has_text(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))
