"""The block that a client's leaving cancels."""

import asyncio

import pytest

from tenuto.api.stream import CancelledBy

pytestmark = pytest.mark.asyncio


async def test_its_end_cancels_the_block_quietly() -> None:
    left, ended = asyncio.Event(), []

    async def watch() -> None:
        await left.wait()

    with CancelledBy(watch()):
        asyncio.get_running_loop().call_soon(left.set)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")
    assert ended == ["cleaned up"]
    await still_uncancelled()


async def test_a_failed_watch_ends_the_block_too() -> None:
    async def watch() -> None:
        raise OSError

    with CancelledBy(watch()):
        await asyncio.Event().wait()
    await still_uncancelled()


async def test_the_block_ends_first() -> None:
    left, seen = asyncio.Event(), []

    async def watch() -> None:
        try:
            await left.wait()
        finally:
            seen.append("cancelled")

    with CancelledBy(watch()):
        await asyncio.sleep(0)
    left.set()
    await still_uncancelled()
    assert seen == ["cancelled"]


async def test_both_end_in_the_same_turn() -> None:
    left = asyncio.Event()

    async def watch() -> None:
        await left.wait()

    with CancelledBy(watch()):
        await asyncio.sleep(0)
        left.set()
    await still_uncancelled()


async def test_an_error_of_the_block_is_not_lost() -> None:
    async def watch() -> None:
        pass

    async def block() -> None:
        with CancelledBy(watch()):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError("mine") from None

    with pytest.raises(ValueError, match="mine"):
        await block()
    await still_uncancelled()


@pytest.mark.parametrize("left_too", [False, True])
async def test_who_cancels_the_task_is_obeyed(left_too: bool) -> None:
    left, began = asyncio.Event(), asyncio.Event()

    async def watch() -> None:
        await left.wait()

    async def block() -> None:
        with CancelledBy(watch()):
            began.set()
            await asyncio.Event().wait()
        raise AssertionError("it went on")

    task = asyncio.create_task(block())
    await began.wait()
    if left_too:
        left.set()
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def still_uncancelled() -> None:
    """Also what is to happen soon."""
    for _ in range(5):
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
