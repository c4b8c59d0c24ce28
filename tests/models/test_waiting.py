"""The order in which waiting requests get their model."""

import asyncio

from tenuto.models.waiting import Queue, Waiter


def waiter(key: str, since: float = 0.0) -> Waiter:
    return Waiter(asyncio.get_running_loop().create_future(), since, 1, key)


def taken(queue: Queue) -> list[str]:
    return [queue.take().key for _ in range(len(queue))]


async def test_first_come_first_served_for_one_key() -> None:
    queue, waiters = Queue(), [waiter("a", since) for since in (1, 2, 3)]
    for one in waiters:
        queue.add(one)
    assert [queue.take() for _ in waiters] == waiters
    assert queue.first() is None


async def test_round_robin_over_keys() -> None:
    queue = Queue()
    for key in "aaaaabbc":
        queue.add(waiter(key))
    assert taken(queue) == list("abcabaaa")


async def test_one_that_leaves_is_not_taken() -> None:
    queue = Queue()
    first, second = waiter("a"), waiter("a")
    queue.add(first)
    queue.add(second)
    queue.remove(first)
    queue.remove(first)
    assert queue.take() is second
    assert len(queue) == 0


async def test_the_longest_wait() -> None:
    queue = Queue()
    assert queue.since() is None
    for key, since in (("a", 3.0), ("b", 2.0), ("b", 4.0)):
        queue.add(waiter(key, since))
    assert queue.since() == 2.0
