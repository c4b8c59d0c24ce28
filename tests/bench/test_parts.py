"""Percentiles, processes, and a connection that ends when it should not."""

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tenuto.bench.client import Address, Answer, Client
from tenuto.bench.figures import mean_gap_s, percentile, ratios
from tenuto.bench.processes import cost_of, cpu_s

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0, 100))
def test_percentile(values: list[float], percent: float) -> None:
    """At least so many are not above it, and fewer are below it: that leaves one value."""
    found = percentile(sorted(values), percent)
    assert found in values
    needed = percent / 100 * len(values)
    assert sum(value <= found for value in values) >= needed - 1e-9
    assert sum(value < found for value in values) < max(needed, 1e-9) + 1e-9


def test_known_percentiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([], 50) is None


def test_a_gap_per_token_whatever_an_event_holds() -> None:
    answer = Answer(0, 0, counted=5)
    answer.texts.extend([1.0, 3.0])
    assert mean_gap_s(answer) == 0.5


def test_only_whole_turns_are_compared() -> None:
    def rounds(*values: float, is_whole: bool = True) -> list[dict[str, object]]:
        return [{"x": value, "is_whole": is_whole} for value in values]

    assert ratios(rounds(2, 6, 9), [*rounds(4, 2), *rounds(1, is_whole=False)]) == {
        "x": {"min": 0.5, "median": 1.75, "max": 3, "pairs": [0.5, 3]}
    }
    assert ratios(rounds(1), rounds(0)) == {}


def test_the_cost_is_that_of_the_given_processes() -> None:
    busy = "while time.process_time() < 0.1: pass"
    told = "print(time.process_time(), flush=True); sys.stdin.read()"
    child = f"import os, sys, time\nif os.fork() == 0:\n  {busy}\nelse:\n  os.wait(); {told}"
    threads = f"import sys, threading, time\ndef work():\n  {busy}\n"
    threads += f"one = threading.Thread(target=work); one.start(); one.join(); {told}"
    with asking(child) as (waiter, waited_s), asking(threads) as (worker, worked_s):
        # What a child took is not counted, and what a thread took is, to less than a tick of 10 ms.
        assert 0 < cpu_s(waiter) - waited_s < 0.01
        assert 0 < cpu_s(worker) - worked_s < 0.01
        assert waited_s < 0.1 <= worked_s
        both = cost_of([waiter, worker])
        assert both is not None
        assert both[0] >= waited_s + worked_s
        assert both[1] > 2 * 2**20
    assert cost_of([os.getpid()]) is not None
    assert cost_of([os.getpid(), waiter]) is None
    for no_pid in (waiter, 2**31):
        with pytest.raises((OSError, OverflowError)):
            cpu_s(no_pid)


@contextmanager
def asking(code: str) -> Iterator[tuple[int, float]]:
    """A process that is left waiting, once it has told what it took by then."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.pid, float(process.stdout.readline())
        process.communicate()


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[Client]:
    """A server that answers each request with the next piece; an empty one closes instead."""
    left = list(pieces)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            await reader.readuntil(b"\r\n\r\n{}")
            piece = left.pop(0)
            writer.write(piece)
            if not piece or not left:
                break
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        client = Client(Address(f"http://{host}:{port}", "completions", None), 5)
        yield client
        client.close()


def streamed(*events: bytes) -> bytes:
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    return OK + b"".join(chunks) + b"0\r\n\r\n"


async def ask(client: Client) -> Answer:
    return await client.ask(b"{}", time.monotonic())


TEXT = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"


async def test_events_in_pieces_and_together() -> None:
    async with answering(streamed(TEXT[:9], TEXT[9:] + TEXT + b": hello\n\n", DONE)) as client:
        answer = await ask(client)
    assert (answer.error, answer.tokens, len(answer.texts)) == (None, 2, 2)


async def test_only_text_counts() -> None:
    """Not the role, the reason of the end, or the usage, which come in events of their own."""
    others: list[dict[str, Any]] = [
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {}, "text": None},
    ]
    said = [{"delta": {name: "a"}} for name in ("content", "reasoning", "reasoning_content")]
    called = [{"delta": {"content": None, "tool_calls": [{"index": 0}]}}]
    usage = {"prompt_tokens": 5, "completion_tokens": 9}
    bodies: list[dict[str, Any]] = [
        {"choices": [choice]} for choice in [*others, *said, *called, *others]
    ]
    bodies.append({"choices": [], "usage": usage})
    events = [b"data: %b\n\n" % json.dumps(body).encode() for body in bodies]
    async with answering(streamed(*events, DONE)) as client:
        answer = await ask(client)
    assert (answer.error, len(answer.texts)) == (None, 4)
    assert (answer.prompt_tokens, answer.tokens) == (5, 9)


async def test_an_answer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.bench.client.MAX_UNREAD_BYTES", 100)
    async with answering(OK + b"%x\r\n" % 200 + b"data: " * 30) as client:
        answer = await ask(client)
    assert (answer.error, answer.detail) == ("protocol", "the answer is too large")


async def test_a_server_may_close_after_each_answer() -> None:
    once = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    async with answering(once, once) as client:
        assert [(await ask(client)).error for _ in range(2)] == [None, None]


def test_addresses() -> None:
    request = Address("https://a/b/v1/", "completions", "sk").request(b"{}")
    assert request.startswith(b"POST /b/v1/completions HTTP/1.1\r\nhost: a\r\n")
    assert request.endswith(b"\r\ncontent-length: 2\r\n\r\n{}")
    assert b"\r\nauthorization: Bearer sk\r\n" in request
    assert Address("https://a", "completions", None).port == 443


async def test_a_kept_connection_that_was_closed_is_renewed() -> None:
    whole = streamed(TEXT, DONE)
    async with answering(whole, b"", whole) as client:
        assert [(await ask(client)).error for _ in range(2)] == [None, None]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_kept_connection_that_was_reset_is_renewed(run: Callable[[Any], None]) -> None:
    """While it was idle, of which uvloop tells by a RuntimeError."""

    async def answer_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(streamed(TEXT, DONE))
        await writer.drain()
        await answered.wait()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def ask_twice() -> None:
        async with await asyncio.start_server(answer_and_reset, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            client = Client(Address(f"http://{host}:{port}", "completions", None), 5)
            assert (await ask(client)).error is None
            answered.set()
            await asyncio.sleep(0.05)
            assert (await ask(client)).error is None
            client.close()

    answered = asyncio.Event()
    run(ask_twice())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (streamed(TEXT), "incomplete"),
        (streamed(b'data: {"error": {"code": 503}}\n\n', DONE), "stream"),
        (streamed(b"data: nothing\n\n"), "protocol"),
        (b"hello\r\n\r\n", "protocol"),
        (streamed(TEXT, DONE)[:-9], "connection"),
        (b"", "connection"),
        (b"HTTP/1.1 429 No\r\ncontent-length: 2\r\n\r\n{}", "429"),
    ],
)
async def test_what_is_no_whole_answer(answer: bytes, kind: str) -> None:
    async with answering(answer) as client:
        assert (await ask(client)).error == kind
