"""What happens to a request whose engine is lost."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenuto.errors import EngineLost

T = TypeVar("T")


async def again_once(work: Callable[[], Awaitable[T]]) -> T:
    """Runs it a second time: a client that has received no byte loses nothing but time."""
    try:
        return await work()
    except EngineLost:
        return await work()
