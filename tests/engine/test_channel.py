"""Steps between a replica and a front end, over real connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tenuto.engine import channel
from tenuto.engine.channel import (
    Accepted,
    Address,
    Ended,
    Failure,
    Inbox,
    Link,
    Links,
    Measured,
    Receiver,
    Stepped,
)
from tenuto.engine.types import Delta, EngineStats, FinishReason, Step, TokenLogprob, TopLogprob
from tenuto.errors import (
    ApiError,
    BadRequest,
    EngineLost,
    InternalError,
    NotLoaded,
    TooLarge,
    Unavailable,
)

HOST = "127.0.0.1"
LOGPROB = TokenLogprob(7, "a", -0.5, (TopLogprob(7, "a", -0.5), TopLogprob(8, None, -1.0)))


def delta(text: str, finish: FinishReason | None = None, index: int = 0, **fields: Any) -> Delta:
    return Delta(index, text, list(text.encode()), finish, **fields)


def step(text: str, finish: FinishReason | None = None, **fields: Any) -> Step:
    return Step([delta(text, finish, **fields)])


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Whatever comes, no error of its own remains."""
    receiver = await Receiver.open(HOST)
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    try:
        yield receiver
    finally:
        receiver.close()
        await until(lambda: not receiver._connections)
    assert unseen == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def linked(receiver: Receiver, model: str = "a") -> AsyncIterator[Link]:
    link = await Links(model).to(receiver.address)
    try:
        yield link
    finally:
        await cut(link)


async def cut(link: Link) -> None:
    assert link._transport is not None
    link._transport.close()
    await asyncio.wait_for(link.lost.wait(), 5)


async def taken(inbox: Inbox) -> list[Step]:
    """All of it. Errors: what it ended with."""
    steps = []
    async with asyncio.timeout(5):
        while True:
            try:
                steps.append(await inbox.take())
            except StopAsyncIteration:
                return steps


def candidates(steps: list[Step]) -> dict[int, Any]:
    """What each has in the end: text, tokens, log-probabilities and why it ended."""
    found: dict[int, Any] = {}
    for one in (one for step in steps for one in step.deltas):
        known = found.setdefault(one.index, {"text": "", "ids": [], "logprobs": [], "ends": []})
        known["text"] += one.text
        known["ids"] += one.token_ids
        known["logprobs"] += one.logprobs or []
        known["ends"] += [(one.finish_reason, one.stop_reason)] if one.finish_reason else []
    return found


async def accepted(receiver: Receiver, link: Link, inbox: Inbox) -> int:
    stream = receiver.add(inbox)
    link.send(Accepted(stream))
    await asyncio.wait_for(inbox.accepted.wait(), 5)
    return stream


async def test_steps_arrive_in_order() -> None:
    async with receiving() as receiver, linked(receiver) as link:
        inboxes = [Inbox(), Inbox()]
        streams = [await accepted(receiver, link, inbox) for inbox in inboxes]
        assert not any(inbox.has_begun for inbox in inboxes)
        for text in "abc":
            for stream in streams:
                link.send(Stepped(stream, step(f"{text}{stream}")))
        for stream in streams:
            link.send(Ended(stream))
        for stream, inbox in zip(streams, inboxes, strict=True):
            text = "".join(one.deltas[0].text for one in await taken(inbox))
            assert text == f"a{stream}b{stream}c{stream}"


async def test_a_step_comes_as_it_was_sent() -> None:
    sent = Step(
        [
            delta("é", "stop", stop_reason="end", logprobs=[LOGPROB], cumulative_logprob=-0.5),
            delta("", "length", index=1, stop_reason=2**40),
        ],
        cached_tokens=5,
        prompt_logprobs=[None, LOGPROB],
    )
    async with receiving() as receiver, linked(receiver) as link:
        inbox = Inbox()
        stream = await accepted(receiver, link, inbox)
        link.send(Stepped(stream, sent))
        link.send(Ended(stream))
        assert await taken(inbox) == [sent]


@pytest.mark.parametrize(
    ("error", "kind", "message", "param"),
    [
        (BadRequest("too long", param="prompt"), BadRequest, "too long", "prompt"),
        (BadRequest("no", param=None), BadRequest, "no", None),
        (EngineLost(), EngineLost, EngineLost().message, None),
        (Unavailable("full"), Unavailable, "full", None),
        (NotLoaded("gone"), Unavailable, "gone", None),
        (TooLarge("secret", status=413), InternalError, InternalError().message, None),
        (ZeroDivisionError("secret"), InternalError, InternalError().message, None),
    ],
)
async def test_errors_keep_their_type_and_param(
    error: Exception, kind: type[ApiError], message: str, param: str | None
) -> None:
    async with receiving() as receiver, linked(receiver) as link:
        inbox = Inbox()
        stream = await accepted(receiver, link, inbox)
        link.send(Ended(stream, Failure.of(error)))
        with pytest.raises(ApiError) as caught:
            await taken(inbox)
        assert type(caught.value) is kind
        assert (caught.value.message, caught.value.param) == (message, param)


async def test_a_lost_connection_ends_its_own_streams() -> None:
    async with receiving() as receiver, linked(receiver) as other:
        begun, waiting, others = Inbox(), Inbox(), Inbox()
        other_stream = await accepted(receiver, other, others)
        async with linked(receiver) as link:
            link.send(Stepped(await accepted(receiver, link, begun), step("a")))
            await accepted(receiver, link, waiting)
            other.send(Stepped(other_stream, step("b")))
            await until(lambda: begun.has_begun and others.has_begun)
        with pytest.raises(EngineLost):
            await taken(begun)
        # Not a word of it was read: it can be asked for again.
        assert not waiting.has_ended
        other.send(Ended(other_stream))
        assert await taken(others) == [step("b")]


async def test_what_nobody_reads_any_more_is_dropped() -> None:
    async with receiving() as receiver, linked(receiver) as link:
        inbox, early, other = Inbox(), Inbox(), Inbox()
        running = await accepted(receiver, link, inbox)
        given_up = receiver.add(early)
        # One before a replica has it, the other while it runs.
        receiver.forget(given_up, early)
        receiver.forget(running, inbox)
        for stream in (running, given_up):
            link.send(Accepted(stream))
            link.send(Stepped(stream, step("late")))
            link.send(Ended(stream))
        await accepted(receiver, link, other)
        assert not any(one.has_begun or one.has_ended for one in (inbox, early))


async def test_a_second_attempt_hears_nothing_of_the_first() -> None:
    """Another replica has the request, and then the connection to the first is lost."""
    async with receiving() as receiver, linked(receiver) as other:
        inbox = Inbox()
        async with linked(receiver) as link:
            first = await accepted(receiver, link, inbox)
            receiver.forget(first, inbox)
            second = receiver.add(inbox)
            link.send(Stepped(first, step("first")))
        other.send(Accepted(second))
        other.send(Stepped(second, step("second", "stop")))
        other.send(Ended(second))
        assert await taken(inbox) == [step("second", "stop")]


async def test_whoever_writes_to_a_lost_front_end_is_told() -> None:
    async with receiving() as receiver, linked(receiver) as link:
        await accepted(receiver, link, Inbox())
        receiver.close()
        await asyncio.wait_for(link.lost.wait(), 5)
        await asyncio.wait_for(link.ready(), 5)
        with pytest.raises(EngineLost):
            link.send(Accepted(2))


async def test_closing_ends_every_stream() -> None:
    async with receiving() as receiver, linked(receiver) as link:
        waiting, running = Inbox(), Inbox()
        await accepted(receiver, link, running)
        receiver.add(waiting)
        receiver.close()
        for inbox in (waiting, running):
            assert inbox.accepted.is_set()
            with pytest.raises(EngineLost):
                await taken(inbox)


async def test_who_is_not_read_waits() -> None:
    """And goes on once it is read, or its front end is gone."""
    with socket.create_server((HOST, 0)) as listener:
        links = Links("a")
        link = await links.to(Address(HOST, listener.getsockname()[1], "secret"))
        end, _ = listener.accept()
        with end:
            await asyncio.wait_for(link.ready(), 5)
            for is_read in (True, False):
                # More than a network keeps between two ends.
                link.send(Stepped(1, step("a" * (8 << 20))))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(link.ready(), 0.01)
                if is_read:
                    waiting = asyncio.create_task(link.ready())
                    await asyncio.to_thread(drained, end)
                    await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(link.ready(), 5)
        assert link.lost.is_set()


def drained(end: socket.socket) -> None:
    end.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while end.recv(1 << 20):
            pass


async def test_a_large_step_arrives() -> None:
    async with receiving() as receiver, linked(receiver) as link:
        inbox = Inbox()
        stream = await accepted(receiver, link, inbox)
        link.send(Stepped(stream, step("a" * (4 << 20))))
        await asyncio.wait_for(link.ready(), 5)
        link.send(Ended(stream))
        [one] = await taken(inbox)
        assert len(one.deltas[0].text) == 4 << 20


@pytest.mark.parametrize("bad", ["\ud800", "a" * 5000], ids=["unencodable", "oversized"])
async def test_what_cannot_be_sent_is_in_nobodys_way(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_MESSAGE_BYTES", 4096)
    async with receiving() as receiver, linked(receiver) as link:
        inbox = Inbox()
        stream = await accepted(receiver, link, inbox)
        link.send(Stepped(stream, step("a")))
        with pytest.raises(ValueError, match=r"surrogates|bytes"):
            link.send(Stepped(2, Step([Delta(0, bad, [1])])))
        link.send(Stepped(stream, step("b", "stop")))
        link.send(Ended(stream))
        assert candidates(await taken(inbox)) == candidates([step("ab", "stop")])


async def test_what_replicas_have_said_last() -> None:
    async with receiving() as receiver, linked(receiver, "a") as one, linked(receiver, "b"):
        one.send(Measured(EngineStats(1)))
        one.send(Measured(EngineStats(2)))
        await accepted(receiver, one, Inbox())
        assert receiver.stats("a") == [EngineStats(2)]
        assert receiver.stats("b") == []


async def test_one_connection_for_all_streams_between_two() -> None:
    async with receiving() as receiver:
        links = Links("a")
        both = await asyncio.gather(links.to(receiver.address), links.to(receiver.address))
        assert both[0] is both[1] is await links.to(receiver.address)
        links.send_all(Measured(EngineStats(1)))
        await until(lambda: receiver.stats("a") == [EngineStats(1)])
        await cut(both[0])
        links.send_all(Measured(EngineStats(2)))
        again = await links.to(receiver.address)
        assert again is not both[0]
        await cut(again)


async def test_who_stops_waiting_does_not_end_the_connection() -> None:
    async with receiving() as receiver:
        links = Links("a")
        one = asyncio.create_task(links.to(receiver.address))
        other = asyncio.create_task(links.to(receiver.address))
        await asyncio.sleep(0)
        one.cancel()
        link = await asyncio.wait_for(other, 5)
        assert not link.lost.is_set()
        await cut(link)


async def test_a_front_end_that_is_gone() -> None:
    async with receiving() as receiver:
        address = receiver.address
    links = Links("a")
    for _ in range(2):
        with pytest.raises(OSError, match=r".*"):
            await links.to(address)
        links.send_all(Measured(EngineStats(1)))


async def test_a_host_that_falls_silent_is_found_out() -> None:
    """By both ends; without a network between them the kernel's settings have to do."""
    async with receiving() as receiver, linked(receiver) as link:
        await accepted(receiver, link, Inbox())
        [connection] = receiver._connections
        for end in (link, connection):
            assert end._transport is not None
            found = end._transport.get_extra_info("socket")
            tcp = socket.IPPROTO_TCP
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert found.getsockopt(tcp, socket.TCP_KEEPIDLE) < 30
            assert found.getsockopt(tcp, socket.TCP_KEEPINTVL) < 30
            assert found.getsockopt(tcp, socket.TCP_USER_TIMEOUT) < 30_000
