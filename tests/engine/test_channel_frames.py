"""What a front end makes of bytes: strangers, nonsense, and frames that come in pieces."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto.engine import channel
from tenuto.engine.channel import (
    MAX_HELLO_BYTES,
    Accepted,
    Address,
    Ended,
    Hello,
    Inbox,
    Measured,
    Message,
    Receiver,
    Stepped,
)
from tenuto.engine.types import EngineStats
from tenuto.errors import EngineLost
from tests.engine.test_channel import HOST, LOGPROB, accepted, linked, receiving, step, taken


def framed(message: Message) -> bytes:
    data = msgspec.msgpack.encode([message])
    return len(data).to_bytes(4) + data


@asynccontextmanager
async def raw(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which anything can be said."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def is_cut_off(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(5):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize(
    "said",
    [
        framed(Hello("wrong", "a")),
        framed(Hello("", "a")),
        framed(Hello("sécret", "a")),
        framed(Accepted(1)),
        framed(Stepped(1, step("forged"))),
        framed(Measured(EngineStats(5))),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xff",
        (MAX_HELLO_BYTES + 1).to_bytes(4),
        b"\xff\xff\xff\xff",
        # As deep as a hello may be long.
        (4008).to_bytes(4) + b"\x94\x00\xa1a\xa1m" + b"\x91" * 4002,
    ],
    ids=range(12),
)
async def test_a_stranger_is_cut_off(said: bytes) -> None:
    async with receiving() as receiver, linked(receiver) as link:
        inbox = Inbox()
        stream = await accepted(receiver, link, inbox)
        async with raw(receiver.address) as (reader, writer):
            # What follows is not read.
            writer.write(said + framed(Hello(receiver.address.secret, "a")))
            writer.write(framed(Stepped(stream, step("forged"))))
            assert await is_cut_off(reader)
        link.send(Stepped(stream, step("true")))
        link.send(Ended(stream))
        assert [one.deltas[0].text for one in await taken(inbox)] == ["true"]
        assert receiver.stats("a") == []


async def test_a_stranger_does_not_learn_the_secret() -> None:
    async with receiving() as one, receiving() as other:
        assert one.address.secret != other.address.secret
        assert len(one.address.secret) >= 32


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\x92\x02", b"\0\0\0\1a"])
async def test_a_replica_that_talks_nonsense_is_cut_off(said: bytes) -> None:
    async with receiving() as receiver, raw(receiver.address) as (reader, writer):
        inbox = Inbox()
        stream = receiver.add(inbox)
        writer.write(framed(Hello(receiver.address.secret, "a")) + framed(Accepted(stream)))
        writer.write(framed(Stepped(stream, step("before"))) + said)
        assert await is_cut_off(reader)
        assert (await inbox.take()).deltas[0].text == "before"
        with pytest.raises(EngineLost):
            await inbox.take()


async def test_half_a_frame_is_nothing() -> None:
    async with receiving() as receiver:
        inbox = Inbox()
        stream = receiver.add(inbox)
        async with raw(receiver.address) as (_, writer):
            writer.write(framed(Hello(receiver.address.secret, "a")) + framed(Accepted(stream)))
            writer.write(framed(Stepped(stream, step("whole"))))
            writer.write(framed(Stepped(stream, step("half")))[:-1])
            await writer.drain()
            assert (await asyncio.wait_for(inbox.take(), 5)).deltas[0].text == "whole"
        with pytest.raises(EngineLost):
            await asyncio.wait_for(inbox.take(), 5)


class Wire(asyncio.Transport):
    """A connection to the front end without a network: what it is given arrives as it is cut."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__({"socket": socket.socket()})
        self.is_closed = False
        self._protocol = channel._Connection(receiver)
        self._protocol.connection_made(self)

    def give(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def close(self) -> None:
        self.is_closed = True

    def lose(self) -> None:
        self.get_extra_info("socket").close()
        self._protocol.connection_lost(None)


def conversation(secret: str, stream: int) -> bytes:
    messages: list[Message] = [
        Hello(secret, "a"),
        Accepted(stream),
        Stepped(stream, step("one", logprobs=[LOGPROB])),
        Measured(EngineStats(1, generated_tokens=3)),
        Stepped(stream, step("two" * 100, "stop")),
        Ended(stream),
    ]
    return b"".join(map(framed, messages))


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 700)))
def test_frames_may_be_cut_anywhere(cuts: list[int]) -> None:
    asyncio.run(_cut(sorted({0, *cuts})))


def test_frames_may_come_byte_by_byte() -> None:
    asyncio.run(_cut(list(range(700))))


async def _cut(cuts: list[int]) -> None:
    receiver, inbox = Receiver(Address(HOST, 0, "secret")), Inbox()
    data = conversation("secret", receiver.add(inbox))
    wire = Wire(receiver)
    for begin, end in zip(cuts, [*cuts[1:], len(data)], strict=True):
        wire.give(data[begin:end])
    assert not wire.is_closed
    assert [one.deltas[0].text for one in await taken(inbox)] == ["one", "two" * 100]
    assert receiver.stats("a") == [EngineStats(1, generated_tokens=3)]
    wire.lose()
    assert receiver.stats("a") == []


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=64), is_greeted=st.booleans())
def test_garbage_ends_nothing_but_its_connection(data: bytes, is_greeted: bool) -> None:
    receiver, inbox = Receiver(Address(HOST, 0, "secret")), Inbox()
    receiver.add(inbox)
    wire = Wire(receiver)
    if is_greeted:
        wire.give(framed(Hello("secret", "a")))
    wire.give(len(data).to_bytes(4) + data)
    wire.lose()
    assert not inbox.has_ended


async def test_a_silent_stranger_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HELLO_S", 0.001)
    async with receiving() as receiver, raw(receiver.address) as (reader, _):
        assert await is_cut_off(reader)
