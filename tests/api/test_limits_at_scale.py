"""A hundred thousand requests of fifty keys through the whole application: the limits, audited."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from tenuto.access.keys import Key, Keys, Limits, digest_of
from tenuto.access.limits import Admission, Limiter
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.engine.fake import FakeBackend
from tenuto.errors import RateLimited
from tenuto.models.pool import Pool
from tenuto.observe.metrics import Metrics
from tenuto.wire.bounds import Bounds
from tests.access.test_limits import Clock, Told
from tests.conftest import MODEL, make_registry

NUM_REQUESTS, NUM_KEYS, NUM_CLIENTS = 100_000, 50, 64
PATHS = ["/v1/chat/completions", "/v1/completions"]


class Audited(Limiter):
    """Every verdict is compared with the rule as it is written."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, clock)
        self.told: dict[str, Told] = {}
        self.verdicts: Counter[bool] = Counter()

    async def admit(self, key: Key) -> Admission:
        told = self.told.setdefault(key.id, Told())
        is_free = told.is_free(key.limits, self.clock())
        self.verdicts[is_free] += 1
        try:
            admission = await super().admit(key)
        except RateLimited:
            assert not is_free
            raise
        assert is_free
        told.admitted.append(self.clock())
        told.running.append(admission)
        _audit(admission, told, self)
        return admission


def _audit(admission: Admission, told: Told, limiter: Audited) -> None:
    charge, release = admission.charge, admission.release

    def charged(prompt_tokens: int) -> None:
        charge(prompt_tokens)
        told.spends(limiter.clock(), prompt_tokens)

    def released(completion_tokens: int) -> None:
        release(completion_tokens)
        if admission in told.running:
            told.running.remove(admission)
            told.spends(limiter.clock(), completion_tokens)

    # What the application calls; both go on to the real ones.
    admission.charge, admission.release = charged, released  # type: ignore[method-assign]


def key_of(number: int, chance: random.Random) -> Key:
    limits = Limits(
        requests_per_minute=chance.randint(1, 60),
        tokens_per_minute=chance.randint(100, 5000),
        parallel_requests=chance.randint(1, 4),
    )
    return Key(id=str(number), digest=digest_of(f"sk-{number}"), limits=limits)


async def ask(app: Any, secret: str, path: str, body: dict[str, Any], *, leaves: bool) -> int:
    """One request to the application itself, without a socket; its status."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    leaving, statuses = asyncio.Event(), []
    if leaves:
        leaving.set()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {secret}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return statuses[0] if statuses else 499


@pytest.mark.fuzz
@pytest.mark.timeout(170)
async def test_no_request_above_its_limit_and_none_refused_below(tmp_path: Path) -> None:
    clock, chance = Clock(), random.Random(3)
    askers = [key_of(number, chance) for number in range(NUM_KEYS)]
    keys, limiter = Keys(), Audited(clock)
    keys.adopt(askers, has_stored=True)
    registry = make_registry(tmp_path, [{"id": MODEL}])
    pool = Pool(registry, FakeBackend())
    services = Services(registry, pool, keys, Metrics(), Bounds(), limiter=limiter)
    app = build_app(services)
    statuses: Counter[int] = Counter()
    numbers = iter(range(NUM_REQUESTS))

    async def client() -> None:
        for _ in numbers:
            clock.now += chance.expovariate(40)
            body = {"model": MODEL, "max_tokens": chance.randint(1, 40)}
            body |= {"stream": chance.random() < 0.3}
            path = chance.choice(PATHS)
            text = "x" * chance.randint(1, 40)
            is_chat = path == PATHS[0]
            body |= (
                {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
            )
            if chance.random() < 0.02:
                body["temperature"] = 99
            secret = f"sk-{chance.randrange(NUM_KEYS)}"
            statuses[await ask(app, secret, path, body, leaves=chance.random() < 0.02)] += 1

    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    await pool.close(0)
    assert statuses.total() == NUM_REQUESTS
    assert {200, 400, 429} <= statuses.keys() <= {200, 400, 429, 499}
    assert limiter.verdicts.total() == NUM_REQUESTS
    assert statuses[429] == limiter.verdicts[False]
    assert statuses[200] > 10_000
    assert all(not told.running for told in limiter.told.values())
