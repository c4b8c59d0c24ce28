"""What the rows make of rounds, and of what they should be."""

import pytest

from scripts.benchmarks.loads import LOADS
from scripts.benchmarks.measure import MODULES
from scripts.benchmarks.rows import (
    ALONE,
    LITELLM,
    ROWS,
    RUST,
    TENUTO,
    VLLM,
    Round,
    Row,
    difference,
    ratio,
    ratio_above,
)


def rounds(*costs: dict[str, float]) -> list[Round]:
    return [{("load", name): {"ms": ms} for name, ms in cost.items()} for cost in costs]


def row(*subjects: str, **changed: object) -> Row:
    fields = {"how": ratio, "reach": 0.5, "beyond": 0.4, "at_least": False, **changed}
    return Row("a row", "load", "ms", subjects, **fields)  # type: ignore[arg-type]


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is slow for a round is slow for both."""
    found = rounds({TENUTO: 10, VLLM: 20}, {TENUTO: 90, VLLM: 120})
    assert row(TENUTO, VLLM).values(found) == [0.5, 0.75]


def test_a_round_without_one_of_the_subjects_gives_nothing() -> None:
    found = rounds({TENUTO: 10}, {TENUTO: 10, RUST: 5})
    assert row(TENUTO, RUST).values(found) == [2]
    assert row(TENUTO, LITELLM).values(found) == []


def test_what_is_above_the_engine() -> None:
    found = rounds({TENUTO: 7, VLLM: 9, ALONE: 4})
    assert row(TENUTO, VLLM, ALONE, how=ratio_above).values(found) == [0.6]
    assert row(TENUTO, ALONE, how=difference).values(found) == [3]


def test_what_is_no_more_than_chance_above_the_engine() -> None:
    found = rounds({TENUTO: 3, VLLM: 4, ALONE: 4}, {TENUTO: 6, VLLM: 3, ALONE: 4})
    values = row(TENUTO, VLLM, ALONE, how=ratio_above).values(found)
    assert values == pytest.approx([-25, 50])


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.41, "reach"), (0.4, "beyond"), (0.5, "reach"), (0.51, "missed")]
)
def test_at_most(value: float, verdict: str) -> None:
    assert row(TENUTO).verdict(value) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.3, "beyond"), (1.29, "reach"), (1.15, "reach"), (1.14, "missed")]
)
def test_at_least(value: float, verdict: str) -> None:
    assert row(TENUTO, at_least=True, reach=1.15, beyond=1.3).verdict(value) == verdict


def test_without_a_reach_nothing_is_missed() -> None:
    assert row(TENUTO, reach=None, beyond=0.4).verdict(0.5) == "-"


def test_beyond_is_further_than_reach() -> None:
    for row in ROWS:
        if row.reach is not None:
            assert (row.beyond > row.reach) == row.at_least, row.name


def test_every_row_is_measured_and_every_measurement_has_a_row() -> None:
    assert {row.asked for row in ROWS} == LOADS.keys() | MODULES.keys()
    assert len({row.name for row in ROWS}) == len(ROWS)
