"""The order in which waiting requests get their model."""

import asyncio

from tenuto.models.waiting import Asker, Queue, Waiter


def waiter(key: str, since: float = 0.0, priority: int = 0) -> Waiter:
    return Waiter(asyncio.get_running_loop().create_future(), since, 1, Asker(key, priority))


def taken(queue: Queue) -> list[str]:
    return [queue.take().asker.key for _ in range(len(queue))]


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


async def test_the_lower_priority_number_goes_first() -> None:
    queue = Queue()
    for key, priority in (("a", 1), ("a", 0), ("b", 1), ("a", 1), ("c", -5), ("b", 0)):
        queue.add(waiter(key, priority=priority))
    assert taken(queue) == list("cababa")
    assert not queue


async def test_no_key_waits_for_the_queue_of_another() -> None:
    """Of 200 that one key has waiting, one goes before another key's only one."""
    queue = Queue()
    for _ in range(200):
        queue.add(waiter("many"))
    queue.add(waiter("one"))
    assert taken(queue).index("one") == 1


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
