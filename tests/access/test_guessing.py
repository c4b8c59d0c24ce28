"""Those who guess keys wait longer each time."""

import asyncio

import pytest

from tenuto.access.guessing import FREE_FAILURES, MAX_ADDRESSES, MAX_DELAY_S, MAX_WAITING, Guesses
from tenuto.errors import RateLimited


def noting() -> tuple[Guesses, list[float]]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    return Guesses(sleep, lambda: 0.0), slept


async def test_the_first_ones_are_free_then_each_takes_twice_as_long() -> None:
    guesses, slept = noting()
    for _ in range(FREE_FAILURES):
        await guesses.failed("a")
    assert slept == []
    for _ in range(8):
        await guesses.failed("a")
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, MAX_DELAY_S, MAX_DELAY_S]
    await guesses.failed("b")
    assert len(slept) == 8


async def test_after_a_minute_it_is_forgotten() -> None:
    guesses, slept = noting()
    for _ in range(FREE_FAILURES + 1):
        await guesses.failed("a")
    guesses.clock = lambda: 61.0
    await guesses.failed("a")
    assert slept == [0.1]


async def test_what_is_remembered_is_bounded() -> None:
    guesses, _ = noting()
    for number in range(MAX_ADDRESSES + 5):
        await guesses.failed(str(number))
    assert len(guesses._failures) == MAX_ADDRESSES


async def test_no_more_than_so_many_wait() -> None:
    go = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await go.wait()

    guesses = Guesses(sleep, lambda: 0.0)
    for _ in range(FREE_FAILURES):
        await guesses.failed("a")
    waiting = [asyncio.create_task(guesses.failed("a")) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await guesses.failed("a")
    go.set()
    await asyncio.gather(*waiting)
