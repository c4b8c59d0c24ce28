"""What a key may use, on a clock that the test moves."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from tenuto.access.keys import Key, Limits
from tenuto.access.limits import Admission, Limiter
from tenuto.errors import RateLimited

START = 1_800_000_000.0


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(name: str = "k", **limits: int) -> Key:
    return Key(id=name, digest=b"", limits=Limits(**limits))


async def refused(limiter: Limiter, asker: Key) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        await limiter.admit(asker)
    assert (caught.value.status, caught.value.type) == (429, "rate_limit_error")
    return caught.value


async def test_requests_a_minute(clock: Clock) -> None:
    limiter, asker = Limiter(clock, clock), key(requests_per_minute=2)
    first = await limiter.admit(asker)
    assert first.headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "60.000s",
    }
    clock.now += 20
    await limiter.admit(asker)
    error = await refused(limiter, asker)
    assert error.headers["retry-after"] == "40"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 40.001
    await limiter.admit(asker)
    await refused(limiter, asker)


async def test_tokens_a_minute(clock: Clock) -> None:
    """Let in while less is counted than allowed: the prompt at once, the rest when it ends."""
    limiter, asker = Limiter(clock, clock), key(tokens_per_minute=100)
    running = await limiter.admit(asker)
    running.charge(60)
    beside = await limiter.admit(asker)
    beside.charge(30)
    assert beside.headers()["x-ratelimit-remaining-tokens"] == "10"
    clock.now += 10
    running.release(500)
    error = await refused(limiter, asker)
    assert error.headers["retry-after"] == "60"
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    clock.now += 60
    await limiter.admit(asker)


async def test_a_prompt_that_can_never_fit(clock: Clock) -> None:
    limiter, asker = Limiter(clock, clock), key(tokens_per_minute=100)
    admission = await limiter.admit(asker)
    with pytest.raises(RateLimited, match="has 101 tokens, and this key may use 100") as caught:
        admission.charge(101)
    assert caught.value.headers["x-should-retry"] == "false"
    assert admission.headers()["x-ratelimit-remaining-tokens"] == "100"


async def test_requests_at_once(clock: Clock) -> None:
    limiter, asker = Limiter(clock, clock), key(parallel_requests=1, requests_per_minute=2)
    running = await limiter.admit(asker)
    error = await refused(limiter, asker)
    # One that is refused uses nothing up.
    assert error.headers["x-ratelimit-remaining-requests"] == "1"
    running.release(0)
    running.release(0)
    await limiter.admit(asker)
    await refused(limiter, asker)


async def test_tokens_a_month(clock: Clock) -> None:
    limiter, asker = Limiter(clock, clock), key(tokens_per_month=100)
    limiter.spent_this_month({"k": 90})
    admission = await limiter.admit(asker)
    admission.charge(4)
    admission.release(6)
    error = await refused(limiter, asker)
    assert error.headers["x-should-retry"] == "false"
    assert error.headers["retry-after"] == "1440000"  # START is 8:00 UTC on January 15th.
    clock.now += int(error.headers["retry-after"]) + 1
    await limiter.admit(asker)


async def test_keys_do_not_limit_each_other(clock: Clock) -> None:
    limiter = Limiter(clock, clock)
    for name in "ab":
        await limiter.admit(key(name, requests_per_minute=1))
        await refused(limiter, key(name, requests_per_minute=1))
    (await limiter.admit(key("c"))).release(10**9)
    assert (await limiter.admit(key("c"))).headers() == {}


async def test_of_a_key_without_limits_nothing_is_kept(clock: Clock) -> None:
    limiter = Limiter(clock, clock)
    for _ in range(1000):
        admission = await limiter.admit(key())
        admission.charge(1)
        admission.release(1)
    spent = limiter._spent["k"]
    assert not spent.requests._spent
    assert not spent.tokens._spent
    assert spent.month_tokens == 2000


@dataclass
class Told:
    """What was counted of one key, by the rule as it is written."""

    admitted: deque[float] = field(default_factory=deque)
    spent: deque[tuple[float, int]] = field(default_factory=deque)
    running: list[Admission] = field(default_factory=list)
    tokens: int = 0

    def spends(self, now: float, tokens: int) -> None:
        self.spent.append((now, tokens))
        self.tokens += tokens

    def is_free(self, limits: Limits, now: float) -> bool:
        while self.admitted and self.admitted[0] <= now - 60:
            self.admitted.popleft()
        while self.spent and self.spent[0][0] <= now - 60:
            self.tokens -= self.spent.popleft()[1]
        return (
            len(self.admitted) < (limits.requests_per_minute or 0)
            and self.tokens < (limits.tokens_per_minute or 0)
            and len(self.running) < (limits.parallel_requests or 0)
        )


async def test_a_hundred_thousand_requests_over_fifty_keys(clock: Clock) -> None:
    """None above its limits in any minute, and none refused below them."""
    chance = random.Random(1)
    askers = [
        key(
            str(number),
            requests_per_minute=chance.randint(1, 60),
            tokens_per_minute=chance.randint(100, 5000),
            parallel_requests=chance.randint(1, 8),
        )
        for number in range(50)
    ]
    limiter = Limiter(clock, clock)
    told = {asker.id: Told() for asker in askers}
    num_refused = 0
    for _ in range(100_000):
        clock.now += chance.expovariate(40)
        asker = chance.choice(askers)
        own = told[asker.id]
        if own.running and chance.random() < 0.5:
            tokens = chance.randint(0, 60)
            own.running.pop().release(tokens)
            own.spends(clock.now, tokens)
        is_free = own.is_free(asker.limits, clock.now)
        try:
            admission = await limiter.admit(asker)
        except RateLimited:
            assert not is_free
            num_refused += 1
            continue
        assert is_free
        prompt_tokens = chance.randint(1, 60)
        admission.charge(prompt_tokens)
        own.running.append(admission)
        own.admitted.append(clock.now)
        own.spends(clock.now, prompt_tokens)
    assert 10_000 < num_refused < 90_000
