"""vLLM's sockets as ours: over real zmq, in the event loop of the test."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq
import zmq.asyncio

from tenuto.engine.vllm_sockets import DirectSocket

pytestmark = pytest.mark.live
NUM_MESSAGES = 2000


@contextmanager
def pair(taking: int, giving: int) -> Iterator[tuple[DirectSocket, zmq.Socket[bytes]]]:
    """One of ours that takes or gives, and a plain one at the other end."""
    with zmq.asyncio.Context() as context:
        ours, theirs = context.socket(taking), zmq.Socket(zmq.Context.shadow(context), giving)
        # As vLLM has them.
        ours.set_hwm(0)
        port = theirs.bind_to_random_port("tcp://127.0.0.1")
        ours.connect(f"tcp://127.0.0.1:{port}")
        ours.__class__ = DirectSocket
        assert isinstance(ours, DirectSocket)
        with theirs, ours:
            yield ours, theirs


async def taken(socket: DirectSocket) -> bytes:
    [frame] = await socket.recv_multipart(copy=False)
    return bytes(frame)


async def test_every_message_arrives_whenever_it_was_sent() -> None:
    with pair(zmq.PULL, zmq.PUSH) as (ours, theirs):
        for number in range(NUM_MESSAGES):
            waiting = asyncio.create_task(taken(ours))
            # Before it is waited for, while it is, in a crowd, and after a silence.
            for _ in range(number % 3):
                await asyncio.sleep(0)
            await asyncio.to_thread(theirs.send, b"%d" % number)
            assert await asyncio.wait_for(waiting, 5) == b"%d" % number
        for number in range(NUM_MESSAGES):
            theirs.send(b"%d" % number)
        async with asyncio.timeout(10):
            crowd = [await taken(ours) for _ in range(NUM_MESSAGES)]
        assert crowd == [b"%d" % number for number in range(NUM_MESSAGES)]


async def test_what_is_sent_arrives_in_order() -> None:
    with pair(zmq.PUSH, zmq.PULL) as (ours, theirs):
        for number in range(NUM_MESSAGES):
            await ours.send_multipart((b"id", b"%d" % number), copy=False)
        got = [theirs.recv_multipart() for _ in range(NUM_MESSAGES)]
        assert got == [[b"id", b"%d" % number] for number in range(NUM_MESSAGES)]


async def test_what_nobody_takes_keeps_nobody_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    wakes: list[None] = []
    woken = asyncio.Event()
    wake = DirectSocket._wake

    def counted(socket: DirectSocket) -> None:
        wakes.append(None)
        woken.set()
        wake(socket)

    monkeypatch.setattr(DirectSocket, "_wake", counted)
    with pair(zmq.PULL, zmq.PUSH) as (ours, theirs):
        waiting = asyncio.create_task(taken(ours))
        await asyncio.sleep(0)
        theirs.send(b"taken")
        assert await waiting == b"taken"
        wakes.clear()
        woken.clear()
        theirs.send(b"left")
        async with asyncio.timeout(5):
            await woken.wait()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(wakes) < 10
        assert await taken(ours) == b"left"


async def test_a_closed_one_is_not_watched_any_more() -> None:
    with pair(zmq.PULL, zmq.PUSH) as (ours, theirs):
        assert not theirs.closed
        waiting = asyncio.create_task(taken(ours))
        await asyncio.sleep(0)
        descriptor = ours.fileno()
        waiting.cancel()
        ours.close()
        # True for one that is still watched.
        assert not asyncio.get_running_loop().remove_reader(descriptor)
