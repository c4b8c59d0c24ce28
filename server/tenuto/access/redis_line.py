"""One connection to a Redis, on which scripts run in the order of their calling."""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from tenuto.errors import ConfigError

logger = logging.getLogger(__name__)
T = TypeVar("T")
# Longer than this no request waits for Redis.
ANSWER_S = 0.25
# For an answer that came while this process did other things.
GRACE_S = 0.02
CONNECT_S = 2.0
RETRY_S = 0.5
# A connection that is not used is tried this often, so that few requests find it broken.
IDLE_S = 1.0
# Calls that are sent in one piece; they take Redis some 10 ms.
BATCH = 256
# Calls that wait, while Redis takes fewer than are made: more are not sent.
MAX_WAITING = 10_000


@dataclass(slots=True)
class Call:
    script: str
    keys: Sequence[str]
    arguments: Sequence[str | int]
    answer: asyncio.Future[list[int] | None] | None = None


class Line:
    """To be begun by `start` and ended by `close`. `begin` is awaited with each new connection;
    the calls that it returns come first. While Redis is away nothing is sent, and nothing waits.
    """

    def __init__(
        self, url: str, scripts: Iterable[str], begin: Callable[[], Awaitable[Sequence[Call]]]
    ) -> None:
        """Errors: `ConfigError`."""
        self._scripts = {script: _sha_of(script) for script in scripts}
        self._begin = begin
        self._client = _client(url)
        self._is_here = False
        self._failing = False
        self._calls: deque[Call] = deque()
        self._sent: list[Call] = []
        self._awake = asyncio.Event()
        self._tried = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once Redis was found, or was not."""
        self._task = asyncio.create_task(self._run())
        await self._tried.wait()

    async def close(self) -> None:
        """Returns once all calls were sent, as far as Redis takes them."""
        self._closing.set()
        self._awake.set()
        if self._task is not None:
            await self._task

    async def ask(self, call: Call) -> list[int] | None:
        """What the script answers; None when Redis is away."""
        call.answer = asyncio.get_running_loop().create_future()
        return await call.answer if self.tell(call) else None

    def tell(self, call: Call) -> bool:
        """Sent beside the caller, after all that it has asked or told before; False when Redis is
        away."""
        if not self._is_here or len(self._calls) >= MAX_WAITING:
            return False
        self._calls.append(call)
        self._awake.set()
        return True

    async def _run(self) -> None:
        while not self._closing.is_set():
            try:
                await self._connected()
                await self._send_all()
            # Whatever it is: Redis must be used again as soon as it is over.
            except Exception as error:
                self._lose(error)
                await self._disconnect()
                await _either(self._closing, RETRY_S)
        self._is_here = False
        await self._disconnect()

    async def _disconnect(self) -> None:
        # The next connection is a new one, whatever becomes of this.
        with suppress(Exception):
            await self._client.connection_pool.disconnect()

    async def _connected(self) -> None:
        async with asyncio.timeout(CONNECT_S):
            for script in self._scripts:
                await self._client.script_load(script)
        self._calls.extend(await self._begin())
        self._is_here = True
        if self._failing:
            logger.warning("limits: Redis counts them again")
        self._failing = False
        self._tried.set()

    async def _send_all(self) -> None:
        while self._calls or not self._closing.is_set():
            if not self._calls:
                self._awake.clear()
                await _either(self._awake, IDLE_S)
            self._sent = [self._calls.popleft() for _ in range(min(BATCH, len(self._calls)))]
            answers = await _in_time(self._answers(self._sent))
            for call, answer in zip(self._sent, answers, strict=True):
                _resolve(call, answer)

    async def _answers(self, calls: Sequence[Call]) -> list[Any]:
        """Errors: one of Redis, where any of the scripts failed."""
        if not calls:
            await self._client.ping()
            return []
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            sha = self._scripts[call.script]
            pipeline.evalsha(sha, len(call.keys), *call.keys, *call.arguments)
        return list(await pipeline.execute())

    def _lose(self, error: Exception) -> None:
        self._is_here = False
        for call in (*self._sent, *self._calls):
            _resolve(call, None)
        self._sent = []
        self._calls.clear()
        if not self._failing:
            reason = str(error) or type(error).__name__
            logger.error("limits: Redis cannot be used, and this server counts alone: %s", reason)
        self._failing = True
        self._tried.set()


def _client(url: str) -> Any:
    """Errors: `ConfigError`, without the value, which may hold a password."""
    try:
        # Imported late: a server alone does without it.
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ModuleNotFoundError:
        raise ConfigError("setting redis_url: needs redis, of the extra `cluster`") from None
    try:
        return Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=CONNECT_S)
    except ValueError:
        raise ConfigError(
            "setting redis_url: should be redis://user:password@host:port/number, rediss:// or unix://"
        ) from None


def _sha_of(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _resolve(call: Call, answer: list[int] | None) -> None:
    if call.answer is not None and not call.answer.done():
        call.answer.set_result(answer)


async def _in_time(work: Awaitable[T]) -> T:
    """Errors: `TimeoutError`."""
    task = asyncio.ensure_future(work)
    for seconds in (ANSWER_S, GRACE_S):
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    raise TimeoutError(f"no answer within {ANSWER_S} s")


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Until the event, or for so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
