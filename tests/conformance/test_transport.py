"""The transport against servers that do as they please: each answer is an exchange, in time."""

import asyncio
import gzip
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tenuto.conformance import transport
from tenuto.conformance.exchange import Broken, Exchange, Request
from tenuto.conformance.transport import (
    MAX_RATE_LIMIT_WAITS,
    MAX_RETRY_AFTER_S,
    MAX_UNANSWERED,
    WRONG_KEY,
    Server,
    retry_after_s,
    running_requests,
)
from tests.conformance.test_misbehaving import (
    BEGUN,
    EVENTS,
    JSON,
    LIMIT,
    LIMITED,
    LIMITED_BRIEFLY,
    MISBEHAVING,
    SLOW,
    Act,
    Raw,
    http,
    raw,
    says,
    says_and_stalls,
)

GET = Request("GET", "/v1/models")
STREAM = Request("POST", "/v1/completions", {"model": "m", "prompt": "Hi", "stream": True})


@asynccontextmanager
async def asked(
    act: Act, key: str | None = None, timeout_s: float = 5
) -> AsyncIterator[tuple[Raw, Server]]:
    """The server and the transport to it."""
    async with raw(act) as running:
        server = Server(running.url, key, timeout_s)
        try:
            yield running, server
        finally:
            await server.close()


@pytest.mark.parametrize("name", MISBEHAVING)
@pytest.mark.parametrize("request_", [GET, STREAM], ids=["whole", "stream"])
async def test_what_a_server_does_is_said(name: str, request_: Request) -> None:
    act, words = MISBEHAVING[name]
    timeout_s = 0.1 if name in SLOW else 5
    async with asked(act, timeout_s=timeout_s) as (_, server):
        async with asyncio.timeout(timeout_s + 2):
            exchange = await server.send(request_)
    assert re.search(words, exchange.failure or "")
    assert "\n" not in (exchange.failure or "")
    assert 0 < exchange.elapsed_s < timeout_s + 1
    for read in ("json", "events", "chunks"):
        with pytest.raises(Broken, match=words):
            getattr(exchange, read)


@pytest.mark.parametrize(
    ("answer", "request_", "status", "complaint"),
    [
        (http(b"<html>", "content-type: text/html"), GET, 200, "the answer is not JSON: "),
        (http(b'{"a": 1}', JSON), STREAM, 200, "is no server-sent event"),
        (http(b"data: {\n\n", EVENTS), STREAM, 200, "an event of the stream is not JSON"),
        (http(b"data: {}", EVENTS), STREAM, 200, "the stream has no chunks"),
        (http(b"data: [DONE]\n\n", EVENTS), STREAM, 200, "the stream has no chunks"),
        (http(b"", EVENTS), STREAM, 200, "the stream has no chunks"),
        (http(b"data: [1]\n\n", EVENTS), STREAM, 200, "is not an object"),
        (http(b"[" * 100_000, JSON), GET, 200, "the answer is not JSON: "),
        (
            http(b"data: %s\n\n" % (b"[" * 100_000), EVENTS),
            STREAM,
            200,
            "of the stream is not JSON",
        ),
        (http(b"", "location: /v1/", status="307 Moved"), GET, 307, "the answer is not JSON"),
        (http(b"", "location: http://[", status="302 Moved"), GET, 302, "the answer is not JSON"),
    ],
    ids=[
        *("html", "no-stream", "half-json", "half-event", "only-done", "no-event"),
        *("list", "deep", "deep-event", "moved", "nowhere"),
    ],
)
async def test_another_answer_than_was_wanted_is_kept(
    answer: bytes, request_: Request, status: int, complaint: str
) -> None:
    async with asked(says(answer)) as (running, server):
        exchange = await server.send(request_)
        assert len(running.received) == 1
    assert (exchange.status, exchange.failure) == (status, None)
    assert answer.endswith(exchange.text.encode())
    with pytest.raises(Broken, match=complaint):
        assert exchange.chunks if exchange.is_stream else exchange.json


async def test_an_event_that_no_blank_line_ends_is_none() -> None:
    answer = http(b'data: {"a": 1}\r\n\r\n: ping\n\ndata: {"a": 2}\n', EVENTS)
    async with asked(says(answer)) as (_, server):
        assert (await server.send(STREAM)).chunks == [{"a": 1}]


async def test_when_the_answer_began_is_noted() -> None:
    async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BEGUN)
        await asyncio.sleep(0.1)
        writer.write(b"0\r\n\r\n")

    async with asked(begins) as (_, server):
        exchange = await server.send(STREAM)
    assert exchange.first_s is not None
    assert 0 < exchange.first_s < 0.09 < exchange.elapsed_s
    async with asked(says_and_stalls(b""), timeout_s=0.03) as (_, server):
        assert (await server.send(STREAM)).first_s is None


async def test_a_packed_answer_is_unpacked() -> None:
    answer = http(gzip.compress("é".encode()), JSON, "content-encoding: gzip")
    async with asked(says(answer)) as (_, server):
        exchange = await server.send(GET)
    assert (exchange.text, exchange.failure) == ("é", None)


async def test_headers_are_in_lower_case() -> None:
    async with asked(says(http(b"{}", "X-Own: Yes", JSON.upper()))) as (_, server):
        headers = (await server.send(GET)).headers
    assert headers == {"x-own": "Yes", "content-type": "APPLICATION/JSON", "content-length": "2"}


async def test_long_lines_are_counted_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_LINE_BYTES", 100)
    events = [b"data: %s\n\n" % (b"x" * 90)] * 3000
    async with asked(says(http(b"".join(events), EVENTS))) as (_, server):
        assert (await server.send(STREAM)).failure is None
    async with asked(says(http(b"".join([*events, b"x" * 101]), EVENTS))) as (_, server):
        assert (
            await server.send(STREAM)
        ).failure == "a line of the stream is longer than 100 bytes"
    async with asked(says(http(b"x" * 101, JSON))) as (_, server):
        assert (await server.send(GET)).failure is None


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with asked(says_and_stalls(b""), timeout_s=0.03) as (running, server):
        failures = [(await server.send(GET)).failure for _ in range(MAX_UNANSWERED + 3)]
        assert len(running.received) == MAX_UNANSWERED
        async with server.one_connection() as one:
            assert (await one.send(GET)).failure == failures[-1]
    assert set(failures[:MAX_UNANSWERED]) == {"no complete answer within 0.03 s"}
    assert set(failures[MAX_UNANSWERED:]) == {"not sent: 4 requests in a row got no whole answer"}


@pytest.mark.parametrize(
    ("name", "num_sent"),
    # Those that close are asked twice; what cannot be read has been answered.
    [("closes-at-once", 2 * 4), ("is-no-http", 2 * 4), ("is-not-gzip", 4), ("is-not-utf8", 6)],
)
async def test_whatever_fails_counts_but_the_unreadable(name: str, num_sent: int) -> None:
    async with asked(MISBEHAVING[name][0]) as (running, server):
        exchanges = [await server.send(GET) for _ in range(6)]
        assert len(running.received) == num_sent
    assert [e.untried for e in exchanges] == [False] * 4 + [name != "is-not-utf8"] * 2


async def test_an_answer_ends_the_row() -> None:
    num_asked = 0

    async def every_other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        num_asked += 1
        await (says(http(b"{}")) if num_asked % 2 else says_and_stalls(b""))(reader, writer)

    async with asked(every_other, timeout_s=0.03) as (_, server):
        exchanges = [await server.send(GET) for _ in range(2 * MAX_UNANSWERED + 1)]
    assert [e.status for e in exchanges] == [200, None] * MAX_UNANSWERED + [200]


async def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid", "127.0.0.1:80", "x"):
        server = Server(url, timeout_s=5)
        assert (await server.send(GET)).failure == "cannot connect", url
        await server.close()


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with asked(says(http(b"{}"))) as (_, server):
        assert (await server.send(GET)).status == 200


@pytest.mark.parametrize(
    ("told", "waits_s"),
    [
        ("7", 7),
        ("1.5", 1.5),
        ("0", 0.05),
        ("-7", 0.05),
        ("nan", 0.05),
        ("inf", MAX_RETRY_AFTER_S),
        ("86400", MAX_RETRY_AFTER_S),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.05),
        ("Wed, 21 Oct 2115 07:28:00 GMT", MAX_RETRY_AFTER_S),
        ("soon", 4),
        ("", 4),
    ],
)
def test_how_long_is_waited(told: str, waits_s: float) -> None:
    assert retry_after_s({"retry-after": told}, 2) == waits_s


def test_a_date_says_how_long() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < retry_after_s({"retry-after": then}, 0) <= 30


def test_a_server_that_does_not_say_is_given_longer_each_time() -> None:
    assert [retry_after_s({}, attempt) for attempt in (0, 1, 4, 9)] == [1, 2, 16, MAX_RETRY_AFTER_S]


async def test_a_rate_limit_is_waited_for() -> None:
    async with asked(says(LIMIT, LIMIT, http(b"[]"))) as (running, server):
        exchange = await server.send(STREAM)
        assert len(set(running.received)) == 1
    assert (exchange.status, exchange.text, server.patience.rate_limited) == (200, "[]", 2)


async def test_a_rate_limit_without_an_end_is_the_answer() -> None:
    """After one request has waited in vain, no other does: a run of hundreds comes to its end."""
    async with asked(says(LIMIT)) as (running, server):
        exchange = await server.send(GET)
        assert (exchange.status, exchange.untried) == (429, True)
        assert len(running.received) == 1 + MAX_RATE_LIMIT_WAITS
        others = [await server.send(GET) for _ in range(3)]
        assert [(e.status, e.untried) for e in others] == [(429, True)] * 3
        assert len(running.received) == 1 + MAX_RATE_LIMIT_WAITS + 3
    assert server.patience.rate_limited == MAX_RATE_LIMIT_WAITS


async def test_a_limit_that_names_no_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_RETRY_AFTER_S", 0.05)
    async with asked(says(http(b"{}", JSON, status=LIMITED), http(b"[]"))) as (_, server):
        exchange = await server.send(GET)
    assert (exchange.status, exchange.untried, server.patience.rate_limited) == (200, False, 1)


async def test_other_refusals_are_not_waited_for() -> None:
    async with asked(says(http(b"{}", LIMITED_BRIEFLY, status="503 Busy"))) as (running, server):
        exchange = await server.send(GET)
        assert (exchange.status, exchange.untried) == (503, False)
        assert (len(running.received), server.patience.rate_limited) == (1, 0)


@pytest.mark.parametrize(
    ("key", "auth", "header"),
    [
        ("sk-own", "key", b"Bearer sk-own"),
        (None, "key", None),
        ("sk-own", "none", None),
        ("sk-own", "wrong", b"Bearer " + WRONG_KEY.encode()),
        ("sk-own", "malformed", b"sk-own"),
        (None, "malformed", WRONG_KEY.encode()),
    ],
)
async def test_the_words_for_keys(key: str | None, auth: Any, header: bytes | None) -> None:
    async with asked(says(http(b"{}")), key) as (running, server):
        await server.send(Request("GET", "/x", auth=auth))
    found = re.search(rb"\r\nauthorization: ([^\r]*)\r\n", running.received[0], re.I)
    assert (found[1] if found else None) == header


async def test_own_headers_go_before_the_usual_ones() -> None:
    own = {"authorization": "Basic x", "content-type": "text/plain", "origin": "https://a.test"}
    async with asked(says(http(b"{}")), "sk-own") as (running, server):
        await server.send(Request("POST", "/x", {"a": 1}, headers=own))
    head = running.received[0].split(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert head[0] == b"post /x http/1.1"
    assert {f"{name}: {value}".lower().encode() for name, value in own.items()} <= {*head}
    assert sum(line.startswith(b"content-type") for line in head) == 1


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (Request("POST", "/x", raw="".join(map(chr, range(256)))), bytes(range(256))),
        (Request("POST", "/x", raw="ÿ", body={"a": 1}), b"\xff"),
        (Request("POST", "/x", raw=""), b""),
        (Request("POST", "/x", {"é": [1, None]}), '{"é": [1, null]}'.encode()),
        (Request("GET", "/x"), b""),
    ],
)
async def test_bodies_arrive_byte_by_byte(request_: Request, body: bytes) -> None:
    async with asked(says(http(b"{}"))) as (running, server):
        await server.send(request_)
    head, _, found = running.received[0].partition(b"\r\n\r\n")
    assert found == body
    assert (b"content-type: application/json" in head) == (request_.content is not None)


async def test_connections_have_numbers() -> None:
    arrived, both = 0, asyncio.Event()

    async def waits_for_both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived >= 2:
            both.set()
        await both.wait()
        writer.write(http(b"{}"))

    async with asked(waits_for_both) as (_, server):
        beside = await asyncio.gather(server.send(GET), server.send(GET))
        async with server.one_connection() as one:
            in_turn = [await one.send(GET) for _ in range(3)]
    assert len({exchange.connection for exchange in beside}) == 2
    assert len({exchange.connection for exchange in in_turn}) == 1
    assert len({exchange.connection for exchange in [*beside, *in_turn]}) == 3
    async with asked(says(http(b"{}", "connection: close"))) as (_, server):
        closed = [await server.send(GET) for _ in range(2)]
    assert len({exchange.connection for exchange in closed}) == 2


@pytest.mark.parametrize("begun", [b"", BEGUN], ids=["unstreamed", "in-a-stream"])
async def test_leaving_closes_the_connection(begun: bytes) -> None:
    arrived = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await says_and_stalls(begun)(reader, writer)

    async with asked(act) as (running, server), asyncio.timeout(5):
        leave = asyncio.Event()
        sent = asyncio.create_task(server.send(STREAM, leave))
        await arrived.wait()
        assert not running.left.is_set()
        leave.set()
        exchange = await sent
        await running.left.wait()
    assert (exchange.left, exchange.failure) == (True, None)


async def test_an_answer_before_the_leave_is_whole() -> None:
    async with asked(says(http(b"{}"))) as (_, server):
        exchange = await server.send(GET, asyncio.Event())
    assert (exchange.left, exchange.failure, exchange.text) == (False, None, "{}")
    act, words = MISBEHAVING["closes-in-a-stream"]
    async with asked(act) as (_, server):
        exchange = await server.send(STREAM, asyncio.Event())
    assert not exchange.left
    assert words in (exchange.failure or "")


def metrics(*counts: float) -> bytes:
    lines = [f'tenuto_engine_unfinished_requests{{model="{i}"}} {n}' for i, n in enumerate(counts)]
    return http("\n".join(["# HELP x", *lines, ""]).encode())


async def until(word: Any, within_s: float, *answers: bytes) -> tuple[Exchange, int]:
    async with AsyncExitStack() as stack:
        running, server = await stack.enter_async_context(asked(says(*answers)))
        request = Request("GET", "/metrics", until=word, within_s=within_s)
        return await server.send(request), len(running.received)


@pytest.mark.parametrize(
    ("word", "answers"),
    [
        ("busy", [metrics(0, 0), metrics(0), metrics(0, 2)]),
        ("idle", [metrics(1, 0), metrics(3), metrics(0, 0)]),
    ],
)
async def test_metrics_are_looked_at_until(word: str, answers: list[bytes]) -> None:
    exchange, num_looks = await until(word, 5, *answers)
    assert num_looks == 3
    assert running_requests(exchange.text) == (2 if word == "busy" else 0)
    assert exchange.elapsed_s > 0.03


async def test_no_longer_than_told() -> None:
    exchange, num_looks = await until("idle", 0.05, metrics(1))
    assert 1 < num_looks < 5
    assert running_requests(exchange.text) == 1
    assert exchange.elapsed_s >= 0.05


@pytest.mark.parametrize(
    ("text", "running"),
    [
        ("", None),
        ("tenuto_engine_unfinished_requests 3", None),
        ('tenuto_engine_unfinished_requests{model="a"} 3.0\n', 3),
        ('vllm:num_requests_running{a="b"} 1.0\nvllm:num_requests_waiting{a="b"} 2.0\n', 3),
        ('# tenuto_engine_unfinished_requests{model="a"} 3\n', None),
        ('tenuto_engine_unfinished_requests{model="a"} NaN?\n', None),
    ],
)
def test_what_metrics_tell(text: str, running: float | None) -> None:
    assert running_requests(text) == running
