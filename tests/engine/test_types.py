"""Canaries: when two answers can come from the same weights."""

import math

import pytest

from tenuto.engine.types import Canary


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [
        (Canary((1, 2)), Canary((1, 2)), True),
        (Canary((1, 2)), Canary((1, 3)), False),
        (Canary((1, 2)), Canary((1,)), False),
        (Canary((1, 2)), Canary(vector=(1.0, 2.0)), False),
        (Canary(vector=(1.0, 2.0)), Canary(vector=(1.0, 2.0)), True),
        (Canary(vector=(1.0, 0.0)), Canary(vector=(2.0, 0.2)), True),
        (Canary(vector=(1.0, 0.0)), Canary(vector=(1.0, 0.2)), False),
        (Canary(vector=(1.0, 0.0)), Canary(vector=(-1.0, 0.0)), False),
        (Canary(vector=(1.0, 0.0)), Canary(vector=(1.0,)), False),
        (Canary(vector=(0.0, 0.0)), Canary(vector=(0.0, 0.0)), False),
        (Canary(vector=(math.nan,)), Canary(vector=(math.nan,)), False),
        (Canary(vector=(math.inf,)), Canary(vector=(math.inf,)), False),
    ],
)
def test_agreement(one: Canary, other: Canary, agrees: bool) -> None:
    assert one.agrees(other) is agrees
    assert other.agrees(one) is agrees
