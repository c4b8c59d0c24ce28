"""500 random bodies against real vLLM: no 500, no hang, and the engine is whole afterwards."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import ROUTES, judge, random_body
from tests.live.conftest import MODEL, LiveServer, launched, write_registry

pytestmark = pytest.mark.live
SEEDS = st.integers(0, 2**64 - 1)
RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("fuzz")
    registry = write_registry(directory / "registry.yaml", [{"id": MODEL}])
    environment = {"TENUTO_BOUNDS__MAX_TOKENS": "8"}
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server


@settings(max_examples=500, deadline=None, suppress_health_check=RELAXED, database=None)
@given(route=st.sampled_from(ROUTES), seed=SEEDS)
def test_random_bodies(capped: LiveServer, route: str, seed: int) -> None:
    judge(capped.client.post(route, content=json.dumps(random_body(seed, MODEL))))


def test_the_engine_is_whole_afterwards(capped: LiveServer) -> None:
    assert capped.unfinished() == 0
    assert capped.chat("Hello!", temperature=0).status_code == 200
