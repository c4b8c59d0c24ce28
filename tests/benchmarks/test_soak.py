"""After many requests of all kinds nothing stays behind; how its growth is told."""

from collections.abc import Callable
from random import Random

import pytest

from scripts.benchmarks.soak import WARM_UP_SHARE, slope, soaked_real, soaked_scripted

# Allocators take memory by the MiB, and so few requests are all of the minute that limits remember.
MAX_GROWN_KIB = 2048


def test_slope_of_steady_growth() -> None:
    found = slope((number, 500 + number // 2) for number in range(0, 4000, 2))
    assert found["kib_per_1000"] == pytest.approx(500)
    assert found["kib_per_1000_high"] - found["kib_per_1000_low"] < 0.1


def test_slope_of_noise_is_not_told_from_none() -> None:
    random = Random(1)
    found = slope((number, 500 + random.randrange(100)) for number in range(2000))
    assert found["kib_per_1000_low"] < 0 < found["kib_per_1000_high"]


@pytest.mark.bench
@pytest.mark.parametrize(("soaked", "requests"), [(soaked_scripted, 4000), (soaked_real, 200)])
def test_nothing_is_left(soaked: Callable[[int], dict[str, float]], requests: int) -> None:
    found = soaked(requests)
    left = {name: found[name] for name in ("descriptors", "threads", "tasks", "unfinished")}
    assert left == dict.fromkeys(left, 0)
    judged = requests * (1 - WARM_UP_SHARE)
    assert found["kib_per_1000_low"] * judged / 1000 < MAX_GROWN_KIB
