"""Faults in how a server limits a key, and in what it tells of that."""

from collections.abc import Callable

from tests.conformance.faults import Exchange, Fault, Hook, drop_header, set_header, set_status
from tests.conformance.variants_asked import LIMITED_KEY

LEFT = "x-ratelimit-remaining-requests"
BEARER = (b"authorization", f"Bearer {LIMITED_KEY}".encode())


def is_refused(exchange: Exchange) -> bool:
    return exchange.status == 429


def refused(id: str, why: str, hook: Hook) -> Fault:
    """Of every 429."""
    return Fault(id, why, response=lambda e: hook(e) if is_refused(e) else None)


def told(function: Callable[[int], int]) -> Hook:
    """Over how many requests are said to be left."""

    def edit(exchange: Exchange) -> None:
        for name, value in exchange.answer_headers:
            if name == LEFT.encode():
                set_header(LEFT, str(function(int(value))))(exchange)

    return edit


def as_one_key(exchange: Exchange) -> None:
    """The kit's own mark: every other case would have to wait for minutes."""
    if (b"x-case", b"another-key") in exchange.headers:
        others = [header for header in exchange.headers if header[0] != b"authorization"]
        exchange.headers = [*others, BEARER]


def limits_everything(exchange: Exchange) -> None:
    if BEARER in exchange.headers and "completions" not in exchange.path:
        exchange.status = 429


LIMITS = [
    Fault("never-limits", "No request is too many.", response=set_status(200, is_refused)),
    refused("no-retry-after", "A 429 does not say how long to wait.", drop_header("retry-after")),
    refused("retry-in-an-hour", "A 429 asks for an hour.", set_header("retry-after", "3600")),
    Fault("the-same-is-left", "What is left does not fall.", response=told(lambda left: 3)),
    Fault("one-more-is-left", "One request too many is left.", response=told(lambda n: n + 1)),
    Fault("one-limit-for-all", "All keys share one limit.", request=as_one_key),
    Fault("limits-everything", "Every route is limited.", response=limits_everything),
]
