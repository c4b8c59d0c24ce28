"""Limits that several servers count together, in a Redis.

While Redis is away each counts by itself, as `limits.py` does. For that it counts its own requests
all the time.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tenuto.access.keys import NO_LIMITS, Key, Limits
from tenuto.access.limit_scripts import ADMIT, LEASE_S, RENEW, SPEND
from tenuto.access.limits import MINUTE_S, Admission, Limiter, Spent, Window, month_end
from tenuto.access.redis_line import Call, Line

logger = logging.getLogger(__name__)
RENEW_EVERY_S = LEASE_S / 3
# Of usage. Where it is away as well, what this process knows of the month will do.
READ_S = 3.0
# Places that were given back last: Redis may not have heard of it, and would keep them.
MAX_GIVEN_BACK = 10_000
Written = Callable[[], Mapping[str, int]]


class SharedLimiter(Limiter):
    """`written` reads the tokens of this month by key id, as usage has them: a Redis that has lost
    its memory counts on from there. Minutes go by Redis's clock, in whole seconds. A request's
    place ends `LEASE_S` after its server has."""

    def __init__(
        self,
        url: str,
        written: Written,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Errors: `ConfigError`."""
        super().__init__(clock, monotonic)
        self._line = Line(url, (ADMIT, SPEND, RENEW), self._begin)
        self._written = written
        self._server = secrets.token_hex(4)
        self._numbers = itertools.count()
        # By key id, of those whose requests at once are limited.
        self._places: defaultdict[str, set[str]] = defaultdict(set)
        self._given_back: deque[tuple[str, str]] = deque(maxlen=MAX_GIVEN_BACK)
        self._renewing: asyncio.Task[None] | None = None
        # Not the event loop's threads: models may load there.
        self._thread = ThreadPoolExecutor(1, "limits")

    async def start(self) -> None:
        await self._line.start()
        self._renewing = asyncio.create_task(self._renew())

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        await self._line.close()
        self._thread.shutdown(wait=False)

    async def admit(self, key: Key) -> Admission:
        if key.limits == NO_LIMITS:
            return await super().admit(key)
        own, place = self._spent_by(key.id), f"{self._server}:{next(self._numbers)}"
        told = await self._told(key, own, place)
        self._judge(key, own if told is None else told)
        self._let_in(key, own, told)
        if key.limits.parallel_requests is None:
            place = ""
        else:
            self._places[key.id].add(place)
        return SharedAdmission(self, key, own, told, place)

    def _let_in(self, key: Key, own: Spent, told: Spent | None) -> None:
        now = self.monotonic()
        if told is not None:
            told.let_in(key.limits, now)
            own.in_month(self.clock())
            # The month may have ended meanwhile.
            if told.month_end == own.month_end:
                own.month_tokens = max(own.month_tokens, told.month_tokens)
        # Nobody asks for the own totals while Redis is there, which lets go of what is past.
        own.requests.total(now), own.tokens.total(now)
        own.let_in(key.limits, now)

    async def _told(self, key: Key, own: Spent, place: str) -> Spent | None:
        """What all servers have spent before this request; None while Redis is away."""
        known = own.in_month(self.clock())
        names, end = _names(key, own), own.month_end
        try:
            call = Call(ADMIT, names, (*_numbers(key.limits), place, known))
            answer = await self._line.ask(call)
        except asyncio.CancelledError:
            self._line.tell(Call(SPEND, names[1:], (0, 0, 0, 0, place)))
            raise
        return None if answer is None else _spent(answer, key.limits, end, self.monotonic())

    def spend(self, key: Key, own: Spent, tokens: int, place: str) -> None:
        """After it was added to `own`. `place` is given back, where it is not empty."""
        limits = key.limits
        by_minute = limits.tokens_per_minute is not None
        by_month = limits.tokens_per_month is not None
        if place:
            self._give_back(key, place)
        if place or (tokens and (by_minute or by_month)):
            known = own.month_tokens - tokens
            arguments = (tokens, int(by_minute), int(by_month), known, place)
            self._line.tell(Call(SPEND, _names(key, own)[1:], arguments))

    def _give_back(self, key: Key, place: str) -> None:
        held = self._places[key.id]
        held.remove(place)
        if not held:
            del self._places[key.id]
        self._given_back.append((key.id, place))

    async def _begin(self) -> Sequence[Call]:
        """With each new connection, before it counts."""
        loop, month = asyncio.get_running_loop(), month_end(self.clock())
        try:
            async with asyncio.timeout(READ_S):
                written = await loop.run_in_executor(self._thread, self._written)
        # Whatever it is, this goes on.
        except Exception as error:
            logger.error("limits: usage cannot be read: %s", type(error).__name__)
        else:
            if month_end(self.clock()) == month:
                self.spent_this_month(written)
        given_back: defaultdict[str, set[str]] = defaultdict(set)
        for key_id, place in self._given_back:
            given_back[key_id].add(place)
        return [
            _renewal(key_id, self._places.get(key_id, ()), given_back.get(key_id, ()))
            for key_id in self._places.keys() | given_back.keys()
        ]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            for key_id, places in self._places.items():
                self._line.tell(_renewal(key_id, places))


class SharedAdmission(Admission):
    """`told` is what all servers had spent when it was let in."""

    def __init__(
        self, limiter: SharedLimiter, key: Key, own: Spent, told: Spent | None, place: str
    ) -> None:
        super().__init__(limiter, key, own)
        self._shared, self._told, self._place = limiter, told, place

    def _spend(self, tokens: int) -> None:
        super()._spend(tokens)
        if self._told is not None:
            self._told.add(self._shared, self._key.limits, tokens)
        self._shared.spend(self._key, self._spent, tokens, self._place if self._is_released else "")

    def headers(self) -> dict[str, str]:
        return self._shared.headers(self._key, self._told or self._spent)


def _renewal(key_id: str, held: Collection[str], given_back: Collection[str] = ()) -> Call:
    return Call(RENEW, [_name(key_id, "places")], [len(held), *held, *given_back])


def _spent(answer: Sequence[int], limits: Limits, end: float, now: float) -> Spent:
    requests, tokens, (running, month_tokens) = answer[:3], answer[3:6], answer[6:]
    return Spent(
        requests=_window(requests, limits.requests_per_minute, now),
        tokens=_window(tokens, limits.tokens_per_minute, now),
        running=running,
        month_end=end,
        month_tokens=month_tokens,
    )


def _window(answer: Sequence[int], limit: int | None, now: float) -> Window:
    """With the same total, below the limit and empty at the same times."""
    total, end_ms, below_ms = answer
    window = Window()
    over = total - limit + 1 if limit is not None and total >= limit else 0
    for amount, after_ms in ((over, below_ms), (total - over, end_ms)):
        if amount:
            window.add(now - MINUTE_S + after_ms / 1000, amount)
    return window


def _numbers(limits: Limits) -> tuple[int, int, int, int]:
    """In the order of the script, 0 for none."""
    return (
        limits.requests_per_minute or 0,
        limits.tokens_per_minute or 0,
        limits.parallel_requests or 0,
        limits.tokens_per_month or 0,
    )


def _names(key: Key, spent: Spent) -> list[str]:
    month = f"month-until-{spent.month_end:.0f}"
    return [_name(key.id, what) for what in ("requests", "tokens", "places", month)]


def _name(key_id: str, what: str) -> str:
    return f"tenuto:{key_id}:{what}"
