"""What each key may use: requests and tokens a minute, requests at once, tokens a month."""

import math
import time
from calendar import timegm
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tenuto.access.keys import Key, Limits
from tenuto.errors import RateLimited

MINUTE_S = 60.0
LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_month", "parallel_requests")
# What a client is told that asks again while others of its key still run.
PARALLEL_RETRY_S = 1


@dataclass
class Window:
    """What was spent in the last minute, exactly: requests, or tokens."""

    _spent: deque[tuple[float, int]] = field(default_factory=deque)
    _total: int = 0

    def add(self, now: float, amount: int) -> None:
        self._spent.append((now, amount))
        self._total += amount

    def total(self, now: float) -> int:
        while self._spent and self._spent[0][0] <= now - MINUTE_S:
            self._total -= self._spent.popleft()[1]
        return self._total

    def empty_after_s(self, now: float) -> float:
        """Seconds until the total is 0, when nothing is added."""
        return max(0.0, self._spent[-1][0] + MINUTE_S - now) if self._spent else 0.0

    def below_after_s(self, limit: int, now: float) -> float:
        """Seconds until the total is below the limit, when nothing is added."""
        over = self.total(now) - limit
        if over >= 0:
            for when, amount in self._spent:
                over -= amount
                if over < 0:
                    return when + MINUTE_S - now
        return 0.0


@dataclass
class Spent:
    """Of one key; the windows of what it may use without limit stay empty. `month_tokens` are of
    the month that ends at `month_end`, in seconds since the epoch."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0
    month_end: float = 0.0
    month_tokens: int = 0

    def in_month(self, now: float) -> int:
        if now >= self.month_end:
            self.month_end, self.month_tokens = month_end(now), 0
        return self.month_tokens

    def let_in(self, limits: Limits, now: float) -> None:
        if limits.requests_per_minute is not None:
            self.requests.add(now, 1)
        self.running += 1

    def add(self, limiter: "Limiter", limits: Limits, tokens: int) -> None:
        self.in_month(limiter.clock())
        self.month_tokens += tokens
        if limits.tokens_per_minute is not None and tokens:
            self.tokens.add(limiter.monotonic(), tokens)


class Admission:
    """One request that was let in. `charge` its prompt before the engine runs; `release` it
    however it ends."""

    def __init__(self, limiter: "Limiter", key: Key, spent: Spent) -> None:
        self._limiter, self._key, self._spent = limiter, key, spent
        self._is_released = False

    def charge(self, prompt_tokens: int) -> None:
        """Errors: `RateLimited` for a prompt that alone is more than its key may use a minute."""
        limit = self._key.limits.tokens_per_minute
        if limit is not None and prompt_tokens > limit:
            self._limiter.refused["tokens_per_minute"] += 1
            raise RateLimited(
                f"The prompt has {prompt_tokens} tokens, and this key may use {limit} a minute.",
                retry_after_s=math.ceil(MINUTE_S),
                is_final=True,
            )
        self._spend(prompt_tokens)

    def release(self, completion_tokens: int) -> None:
        """`completion_tokens` are those of all candidates."""
        if self._is_released:
            return
        self._is_released = True
        self._spent.running -= 1
        self._spend(completion_tokens)

    def _spend(self, tokens: int) -> None:
        self._spent.add(self._limiter, self._key.limits, tokens)

    def headers(self) -> dict[str, str]:
        return self._limiter.headers(self._key, self._spent)


class Limiter:
    """In this process's memory. `clock` tells the time of day, for months; minutes go by
    `monotonic`, whatever becomes of it. `refused` counts by limit."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock, self.monotonic = clock, monotonic
        self.refused = dict.fromkeys(LIMITS, 0)
        self._spent: dict[str, Spent] = {}

    def spent_this_month(self, tokens: Mapping[str, int]) -> None:
        """By key id, what was written down, by others as well: at least this was used."""
        for key_id, month_tokens in tokens.items():
            spent = self._spent_by(key_id)
            spent.month_tokens = max(spent.in_month(self.clock()), month_tokens)

    async def start(self) -> None:
        """In the event loop that admits, before it does."""

    async def close(self) -> None:
        """After the last request."""

    async def admit(self, key: Key) -> Admission:
        """Errors: `RateLimited`. A request is let in while less is used than its key may use; what
        then runs may go beyond. One that is refused uses nothing up."""
        spent = self._spent_by(key.id)
        self._judge(key, spent)
        spent.let_in(key.limits, self.monotonic())
        return Admission(self, key, spent)

    def _spent_by(self, key_id: str) -> Spent:
        spent = self._spent.get(key_id)
        if spent is None:
            spent = self._spent[key_id] = Spent()
        return spent

    def _judge(self, key: Key, spent: Spent) -> None:
        """Errors: `RateLimited`."""
        limits = key.limits
        excess = _excess(limits, spent, self.monotonic())
        excess = excess or _month_excess(limits, spent, self.clock())
        if excess is not None:
            limit, error = excess
            self.refused[limit] += 1
            error.headers |= self.headers(key, spent)
            raise error

    def headers(self, key: Key, spent: Spent) -> dict[str, str]:
        """As OpenAI's API names them: of requests and of tokens, where they are limited."""
        now, limits = self.monotonic(), key.limits
        return _headers("requests", limits.requests_per_minute, spent.requests, now) | _headers(
            "tokens", limits.tokens_per_minute, spent.tokens, now
        )


def _excess(limits: Limits, spent: Spent, now: float) -> tuple[str, RateLimited] | None:
    """The first limit that leaves no room."""
    limit = limits.parallel_requests
    if limit is not None and spent.running >= limit:
        message = f"This key may have {limit} requests at once."
        return "parallel_requests", RateLimited(message, retry_after_s=PARALLEL_RETRY_S)
    windows = (
        (limits.tokens_per_minute, spent.tokens, "use", "tokens"),
        (limits.requests_per_minute, spent.requests, "make", "requests"),
    )
    for limit, window, does, what in windows:
        if limit is not None and window.total(now) >= limit:
            message = f"This key may {does} {limit} {what} a minute."
            retry_after_s = _whole(window.below_after_s(limit, now))
            return f"{what}_per_minute", RateLimited(message, retry_after_s=retry_after_s)
    return None


def _month_excess(limits: Limits, spent: Spent, now: float) -> tuple[str, RateLimited] | None:
    limit = limits.tokens_per_month
    if limit is None or spent.in_month(now) < limit:
        return None
    message = f"This key may use {limit} tokens a month."
    retry_after_s = _whole(spent.month_end - now)
    return "tokens_per_month", RateLimited(message, retry_after_s=retry_after_s, is_final=True)


def _headers(what: str, limit: int | None, window: Window, now: float) -> dict[str, str]:
    if limit is None:
        return {}
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, limit - window.total(now))),
        f"x-ratelimit-reset-{what}": f"{window.empty_after_s(now):.3f}s",
    }


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def month_end(now: float) -> float:
    day = time.gmtime(now)
    return timegm((day.tm_year + day.tm_mon // 12, day.tm_mon % 12 + 1, 1, 0, 0, 0))
