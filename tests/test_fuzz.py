"""10,000 random bodies against the scripted engine: no 500, no hang, one envelope."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MODEL, Running
from tests.fuzz import ROUTES, judge, random_body

pytestmark = pytest.mark.fuzz
SEEDS = st.integers(0, 2**64 - 1)
RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.timeout(240)
@settings(max_examples=9500, deadline=None, suppress_health_check=RELAXED, database=None)
@given(route=st.sampled_from(ROUTES), seed=SEEDS)
def test_json_bodies(server: Running, route: str, seed: int) -> None:
    judge(server.client.post(route, content=json.dumps(random_body(seed, MODEL))))


@settings(max_examples=500, deadline=None, suppress_health_check=RELAXED, database=None)
@given(route=st.sampled_from(ROUTES), body=st.binary(max_size=200))
def test_any_bytes(server: Running, route: str, body: bytes) -> None:
    answer = server.client.post(route, content=body)
    assert answer.status_code == 400
    judge(answer)
