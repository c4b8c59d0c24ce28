"""What each key may use: requests and tokens a minute, requests at once, tokens a month."""

import math
import time
from calendar import timegm
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from tenuto.access.keys import Key, Limits
from tenuto.errors import RateLimited

MINUTE_S = 60.0
# What a client is told that asks again while others of its key still run.
PARALLEL_RETRY_S = 1


@dataclass
class TokenWindow:
    """Tokens of the last minute, exactly. (`limits` keeps an entry for every single token.)"""

    _spent: deque[tuple[float, int]] = field(default_factory=deque)
    _total: int = 0

    def add(self, now: float, tokens: int) -> None:
        # Of a key without a limit nobody asks for the total: what is old would stay.
        self.total(now)
        if tokens:
            self._spent.append((now, tokens))
            self._total += tokens

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
            for when, tokens in self._spent:
                over -= tokens
                if over < 0:
                    return when + MINUTE_S - now
        return 0.0


@dataclass
class _Spent:
    """Of one key. `month` is that of `month_tokens`, as (year, month)."""

    window: TokenWindow = field(default_factory=TokenWindow)
    running: int = 0
    month: tuple[int, int] = (0, 0)
    month_tokens: int = 0

    def in_month(self, now: float) -> int:
        month = _month_of(now)
        if month != self.month:
            self.month, self.month_tokens = month, 0
        return self.month_tokens

    def add(self, now: float, tokens: int) -> None:
        self.window.add(now, tokens)
        self.in_month(now)
        self.month_tokens += tokens


class Admission:
    """One request that was let in. `charge` its prompt before the engine runs; `release` it
    however it ends."""

    def __init__(self, limiter: "Limiter", key: Key, spent: _Spent) -> None:
        self._limiter, self._key, self._spent = limiter, key, spent
        self._is_released = False

    def charge(self, prompt_tokens: int) -> None:
        """Errors: `RateLimited` for a prompt that alone is more than its key may use a minute."""
        limit = self._key.limits.tokens_per_minute
        if limit is not None and prompt_tokens > limit:
            raise RateLimited(
                f"The prompt has {prompt_tokens} tokens, and this key may use {limit} a minute.",
                retry_after_s=math.ceil(MINUTE_S),
                is_final=True,
            )
        self._spent.add(self._limiter.clock(), prompt_tokens)

    def release(self, completion_tokens: int) -> None:
        """`completion_tokens` are those of all candidates."""
        if self._is_released:
            return
        self._is_released = True
        self._spent.running -= 1
        self._spent.add(self._limiter.clock(), completion_tokens)

    def headers(self) -> dict[str, str]:
        return self._limiter.headers(self._key, self._spent)


class Limiter:
    """In this process's memory. `clock` tells the time of day, as the windows of `limits` do."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._items: dict[int, RateLimitItem] = {}
        self._spent: dict[str, _Spent] = {}

    def spent_this_month(self, tokens: Mapping[str, int]) -> None:
        """By key id, what was used before this process began."""
        for key_id, month_tokens in tokens.items():
            spent = self._spent.setdefault(key_id, _Spent())
            spent.in_month(self.clock())
            spent.month_tokens += month_tokens

    def admit(self, key: Key) -> Admission:
        """Errors: `RateLimited`. A request is let in while less is used than its key may use; what
        then runs may go beyond. One that is refused uses nothing up."""
        now, limits = self.clock(), key.limits
        spent = self._spent.setdefault(key.id, _Spent())
        error = self._excess(limits, spent, now)
        limit = limits.requests_per_minute
        if error is None and limit is not None and not self._hit(limit, key.id):
            reset_s = self._requests_left(limit, key.id, now)[1]
            error = RateLimited(
                f"This key may make {limit} requests a minute.", retry_after_s=_whole(reset_s)
            )
        if error is not None:
            error.headers |= self.headers(key, spent)
            raise error
        spent.running += 1
        return Admission(self, key, spent)

    def headers(self, key: Key, spent: _Spent) -> dict[str, str]:
        """As OpenAI's API names them: of requests and of tokens, where they are limited."""
        now = self.clock()
        found: dict[str, str] = {}
        limit = key.limits.requests_per_minute
        if limit is not None:
            left, reset_s = self._requests_left(limit, key.id, now)
            found |= _headers("requests", limit, left, reset_s)
        limit = key.limits.tokens_per_minute
        if limit is not None:
            left = max(0, limit - spent.window.total(now))
            found |= _headers("tokens", limit, left, spent.window.empty_after_s(now))
        return found

    def _excess(self, limits: Limits, spent: _Spent, now: float) -> RateLimited | None:
        limit = limits.parallel_requests
        if limit is not None and spent.running >= limit:
            return RateLimited(
                f"This key may have {limit} requests at once.", retry_after_s=PARALLEL_RETRY_S
            )
        limit = limits.tokens_per_minute
        if limit is not None and spent.window.total(now) >= limit:
            reset_s = spent.window.below_after_s(limit, now)
            return RateLimited(
                f"This key may use {limit} tokens a minute.", retry_after_s=_whole(reset_s)
            )
        limit = limits.tokens_per_month
        if limit is not None and spent.in_month(now) >= limit:
            return RateLimited(
                f"This key may use {limit} tokens a month.",
                retry_after_s=_whole(_month_end(now) - now),
                is_final=True,
            )
        return None

    def _hit(self, limit: int, key_id: str) -> bool:
        return self._requests.hit(self._item(limit), key_id)

    def _requests_left(self, limit: int, key_id: str, now: float) -> tuple[int, float]:
        reset_at, left = self._requests.get_window_stats(self._item(limit), key_id)
        return left, max(0.0, reset_at - now)

    def _item(self, limit: int) -> RateLimitItem:
        item = self._items.get(limit)
        if item is None:
            item = self._items[limit] = RateLimitItemPerMinute(limit)
        return item


def _headers(what: str, limit: int, left: int, reset_s: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(left),
        f"x-ratelimit-reset-{what}": f"{reset_s:.3f}s",
    }


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _month_of(now: float) -> tuple[int, int]:
    day = time.gmtime(now)
    return day.tm_year, day.tm_mon


def _month_end(now: float) -> float:
    year, month = _month_of(now)
    return timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0))
