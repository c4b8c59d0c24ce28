"""Which replica Ray Serve gives a request to, with the router of `engine/ray_router.py`."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

from scripts.benchmarks.hosts import local_serve
from tenuto.engine.prefixes import prefix_hashes
from tenuto.engine.ray_router import SLACK, PrefixRouter

pytestmark = pytest.mark.cluster

NUM_REPLICAS, MAX_ONGOING = 4, 10


class Scripted:
    """Says which replica it is; a held request then goes on until it is cancelled."""

    async def __call__(self, hashes: Any = None, is_held: bool = False) -> AsyncIterator[str]:
        yield serve.get_replica_context().replica_id.unique_id
        if is_held:
            await asyncio.Event().wait()

    def die(self, hashes: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Client:
    """One front end's handle."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._held: list[Any] = []

    def ask(self, prompt: list[int]) -> Any:
        """The replica that answers, as the only item of a stream."""
        return self.handle.remote(prefix_hashes(prompt))

    def replica_of(self, prompt: list[int]) -> str:
        [replica] = self.ask(prompt)
        return str(replica)

    def hold(self, prompt: list[int]) -> str:
        stream = self.handle.remote(prefix_hashes(prompt), True)
        self._held.append(stream)
        return str(next(stream))

    def release(self) -> None:
        """Ends when this front end counts no request any more."""
        while self._held:
            self._held.pop().cancel()
        # An answer that crosses the end of a request leaves a wrong count, for 10 s.
        deadline = time.monotonic() + 20
        while any(map(self.router.replica_queue_len_cache.get, self.router.curr_replicas)):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def lose_count_of(self, *replicas: str) -> None:
        """As after 10 s without a request to it; of all when none is named."""
        for replica_id in self.router.curr_replicas:
            if not replicas or replica_id.unique_id in replicas:
                self.router.replica_queue_len_cache.invalidate_key(replica_id)

    @property
    def router(self) -> PrefixRouter:
        found = self.handle._router._asyncio_router.request_router
        assert isinstance(found, PrefixRouter)
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # So that both are as they were afterwards.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with local_serve(num_cpus=8):
            yield


@pytest.fixture(scope="module")
def app(cluster: None) -> None:
    made = serve.deployment(
        num_replicas=NUM_REPLICAS,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    )(Scripted)
    serve.run(made.bind(), name="app", route_prefix=None)


@pytest.fixture
def client(app: None) -> Iterator[Client]:
    yield from connected()


@pytest.fixture
def other(app: None) -> Iterator[Client]:
    yield from connected()


def connected() -> Iterator[Client]:
    made = Client(serve.get_app_handle("app").options(stream=True, _by_reference=False))
    yield made
    made.release()


def tokens(count: int) -> list[int]:
    return random.choices(range(100_000), k=count)


def test_a_conversation_stays_on_its_replica(client: Client) -> None:
    system = tokens(100)
    prompts = [system + tokens(60) for _ in range(8)]
    replicas = [client.replica_of(prompt) for prompt in prompts]
    for _ in range(4):
        prompts = [prompt + tokens(200) for prompt in prompts]
        assert [client.replica_of(prompt) for prompt in prompts] == replicas


def test_unrelated_prompts_are_spread(client: Client) -> None:
    replicas = Counter(client.hold(tokens(100)) for _ in range(6 * NUM_REPLICAS))
    assert len(replicas) == NUM_REPLICAS


def test_a_hot_prefix_spills_over(client: Client) -> None:
    prompt = tokens(500)
    hot = {client.hold(prompt) for _ in range(SLACK + 1)}
    assert len(hot) == 1
    other = client.hold(prompt)
    assert other not in hot
    # Both are warm now: what comes next goes to the one with less to do.
    assert client.hold(prompt) == other


def test_no_replica_is_given_more_than_it_takes(client: Client) -> None:
    prompt = tokens(500)
    replicas = Counter(client.hold(prompt) for _ in range(NUM_REPLICAS * MAX_ONGOING))
    assert set(replicas.values()) == {MAX_ONGOING}


def test_what_other_front_ends_ask_counts(client: Client, other: Client) -> None:
    prompt, busy = tokens(100), tokens(100)
    replica = client.replica_of(prompt)
    while other.hold(busy) != replica:
        other.release()
        busy = tokens(100)
    assert [other.hold(busy) for _ in range(SLACK)] == [replica] * SLACK
    client.lose_count_of()
    assert client.replica_of(prompt) != replica


def test_without_hashes_it_is_the_power_of_two_choices(client: Client) -> None:
    replicas = set()
    for _ in range(40):
        [replica] = client.handle.remote()
        replicas.add(replica)
    assert len(replicas) > 1
    assert client.replica_of([1, 2, 3]) in replicas


def test_a_warm_replica_goes_to_its_own_request(client: Client) -> None:
    one, other = tokens(100), tokens(100)
    replicas = client.replica_of(one), client.replica_of(other)
    while replicas[0] == replicas[1]:
        other = tokens(100)
        replicas = replicas[0], client.replica_of(other)
    for _ in range(5):
        # The first is routed later than the second: its replica has to be asked how busy it is.
        client.lose_count_of(replicas[0])
        streams = client.ask(one), client.ask(other)
        assert tuple(next(stream) for stream in streams) == replicas


def test_a_dead_replica_is_replaced(client: Client) -> None:
    prompt = tokens(500)
    dead = client.replica_of(prompt)
    with pytest.raises(Exception, match=r".*"):
        client.handle.options(method_name="die", stream=False).remote(prefix_hashes(prompt)).result(
            timeout_s=10
        )
    replica = client.replica_of(prompt)
    assert replica != dead
    assert [client.replica_of(prompt) for _ in range(5)] == [replica] * 5
