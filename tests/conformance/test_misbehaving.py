"""Servers that misbehave in every way but one: the kit ends by itself, and says what is wrong."""

import asyncio
import os
import re
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenuto.cli.conform import app
from tenuto.conformance import transport
from tenuto.conformance.cases import CaseError
from tenuto.conformance.session import Target, Wishes, check, chosen

JSON, EVENTS = "content-type: application/json", "content-type: text/event-stream"
CHUNKED = "transfer-encoding: chunked"
LIMITED, LIMITED_BRIEFLY = "429 Too Many Requests", "retry-after: 0"
Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Raw:
    """A server that does with each request what `act` says. `left` is set once a client goes."""

    act: Act
    url: str = ""
    received: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        with suppress(asyncio.CancelledError):
            try:
                while True:
                    self.received.append(await received(reader))
                    await self.act(reader, writer)
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                self.left.set()
        writer.close()


async def received(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.I)
    return head + await reader.readexactly(int(length[1]) if length else 0)


@asynccontextmanager
async def raw(act: Act) -> AsyncIterator[Raw]:
    running = Raw(act)
    listener = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        listener.close()
        for task in running.tasks:
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer; one that is chunked goes on with what its body is the first chunk of."""
    if CHUNKED in headers:
        body = b"%x\r\n%s\r\n" % (len(body), body)
    elif not any(header.startswith("content-length") for header in headers):
        headers = (*headers, f"content-length: {len(body)}")
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def says(*answers: bytes) -> Act:
    """One after the other, the last again and again."""
    left = list(answers)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return act


def says_and_closes(answer: bytes) -> Act:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    return act


def says_and_stalls(answer: bytes) -> Act:
    """Nothing more comes until the client has gone."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read(1)

    return act


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in http(b"x" * 100_000):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.002)


async def never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http(b"", JSON, f"content-length: {2**40}"))
    while True:
        writer.write(b" " * 2**18)
        await writer.drain()


LIMIT = http(b"{}", LIMITED_BRIEFLY, status=LIMITED)
BEGUN = http(b"data: {}\n\n", EVENTS, CHUNKED)
# What a server does, and what is said of it.
MISBEHAVING: dict[str, tuple[Act, str]] = {
    "never-answers": (says_and_stalls(b""), "no complete answer within"),
    "stalls-in-a-stream": (says_and_stalls(BEGUN), "no complete answer within"),
    "drips": (drips, "no complete answer within"),
    "closes-at-once": (says_and_closes(b""), "the connection ended before the answer did"),
    "closes-in-the-head": (says_and_closes(b"HTTP/1.1 200 OK\r\ncontent"), "ended before"),
    "closes-in-the-body": (
        says_and_closes(http(b'{"data"', JSON, "content-length: 99")),
        "the connection ended before the answer did",
    ),
    "closes-in-a-stream": (says_and_closes(BEGUN), "the connection ended before the answer did"),
    "resets": (resets, "the connection broke|ended before"),
    "is-no-http": (says_and_closes(b"220 smtp.test ESMTP ready\r\n\r\n"), "it is no HTTP"),
    "is-binary": (says_and_closes(bytes(range(256)) * 9), "it is no HTTP"),
    "writes-a-long-line": (
        says(http(b"data: " + b"x" * 5 * 2**20, EVENTS)),
        "a line of the stream is longer than 1048576 bytes",
    ),
    "never-ends": (never_ends, "the answer is longer than"),
    "is-not-utf8": (says(http(b'{"a": "\xff"}', JSON)), "the answer is not UTF-8"),
    "is-not-gzip": (
        says(http(b"{}", JSON, "content-encoding: gzip")),
        "the answer's content-encoding does not match its content",
    ),
}

# Where the transport finds nothing wrong with the answer, the cases do.
NONSENSE: dict[str, Act] = {
    "html": says(http(b"<html>It works!</html>", "content-type: text/html")),
    "redirects": says(http(b"", "location: /elsewhere", status="307 Temporary Redirect")),
    "is-always-over-the-limit": says(LIMIT),
    "empty": says(http(b"", JSON)),
    "null": says(http(b"null", JSON)),
    "list": says(http(b"[[]]", JSON)),
    "deep": says(http(b"[" * 100_000, JSON)),
    "no-choices": says(http(b'{"data": [{}], "choices": []}', JSON)),
    "strange-choices": says(http(b'{"data": [{"id": 1}], "choices": [7, null]}', JSON)),
    "unspeakable-model": says(http(b'{"data": [{"id": "\\ud800"}], "choices": {}}', JSON)),
    "one-logprob": says(
        http(
            b'{"choices": [{"index": 0, "text": "a", "logprobs":'
            b' {"tokens": ["a"], "token_logprobs": [5e9], "top_logprobs": [{"a": 5e9}]}}]}',
            JSON,
        )
    ),
    "strange-logprobs": says(
        http(b'{"choices": [{"index": 0, "logprobs": {"top_logprobs": [[1, "x"]]}}]}', JSON)
    ),
    "strange-metrics": says(http(b'tenuto_engine_unfinished_requests{model="a"} 1.2.3\n')),
}
ALL = {name: act for name, (act, _) in MISBEHAVING.items()} | NONSENSE
ENDLESS = "is-always-over-the-limit"
SLOW = {"never-answers", "stalls-in-a-stream", "drips"}
CASES = ["models/list", "chat/shape", "chat/top_p-cumulates", "*-stream/says-the-same"]
# No prompt is found for it.
UNFOUND = "chat/top_p-cumulates"


@pytest.mark.parametrize("name", [name for name in ALL if name != ENDLESS])
async def test_the_kit_says_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Thirty answers that never end are soon half a gigabyte.
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 2**19)
    timeout_s = 0.01 if name in SLOW else 0.3
    async with raw(ALL[name]) as running, asyncio.timeout(10):
        target = Target(running.url, "sk-own", timeout_s=timeout_s)
        report = await check(target, Wishes(chosen(CASES)))
    results = {r.case.id: r for r in report.results}
    assert (len(results), results.pop(UNFOUND).outcome) == (5, "not judged")
    for result in results.values():
        untried = any(exchange.untried for exchange in result.exchanges.values())
        assert result.outcome == ("not judged" if untried else "failed")
    assert {"models/list", "chat/shape"} <= {r.case.id for r in report.failures}
    for result in report.results:
        assert len(result.message) > 20
        assert "Traceback" not in result.message
    assert report.verdict == "does not conform"


async def test_a_limit_without_an_end_is_no_verdict() -> None:
    async with raw(ALL[ENDLESS]) as running, asyncio.timeout(10):
        with pytest.raises(CaseError, match="no case could be tried: answer: status 429"):
            await check(Target(running.url, "sk-own"), Wishes(chosen(CASES)))


async def tenuto(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("tenuto"),
        "conform",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TOKEN": "sk-own"},
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_on_the_command_line() -> None:
    async with raw(NONSENSE["html"]) as running:
        options = ("--base-url", running.url, "--api-key-env", "TOKEN", "--only", "models/list")
        code, output, errors = await tenuto("run", *options)
    assert (code, errors) == (1, "")
    assert "the answer is not JSON" in output
    assert "does not conform: 1 failed" in output


async def test_a_server_that_never_answers_is_soon_done_with() -> None:
    """All cases: what is not sent any more takes no time, and nobody knows what would have been."""
    async with raw(ALL["never-answers"]) as running, asyncio.timeout(15):
        wishes = Wishes(parallel=4)
        report = await check(Target(running.url, "sk-own", timeout_s=0.1), wishes)
        num_sent = len(running.received)
    # What was learnt of the server had its own patience; cases side by side do not wait.
    most = transport.MAX_UNANSWERED + wishes.parallel - 1
    assert 2 * transport.MAX_UNANSWERED <= num_sent <= transport.MAX_UNANSWERED + most
    counts = report.counts()
    assert {*counts} == {"failed", "not judged", "not applicable"}
    assert 1 <= counts["failed"] <= most
    failed = {r.message.rpartition(": ")[2] for r in report.results if r.outcome == "failed"}
    assert failed == {"no complete answer within 0.1 s"}
    unsent = [
        r for r in report.results if r.exchanges and all(e.untried for e in r.exchanges.values())
    ]
    assert {r.outcome for r in unsent} == {"not judged"}
    said = {exchange.failure for result in unsent for exchange in result.exchanges.values()}
    assert said == {"not sent: 4 requests in a row got no whole answer"}
    assert len(unsent) > 200
    assert (len(report.results) > 400, report.verdict) == (True, "does not conform")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_without_a_server_there_is_no_verdict() -> None:
    with pytest.raises(CaseError, match=r"^cannot connect to "):
        await check(Target(f"http://127.0.0.1:{closed_port()}/v1/"), Wishes())


def test_without_a_server_on_the_command_line() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    ended = CliRunner().invoke(app, ["run", "--base-url", url])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == f"tenuto conform: cannot connect to {url}\n"
