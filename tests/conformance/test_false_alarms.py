"""How often a server that conforms would be told that it does not, by chance: summed over a run."""

from math import comb
from typing import Any

from tenuto.conformance.cases import Case, all_cases

# Two answers of 24 tokens at temperature 2 are equal at most so often. Measured on the demo model
# by tests/live/test_conformance.py; larger models have wider vocabularies.
EQUAL_PAIR = 4e-4
BUDGET = 1e-3
STEPS = 20_000


def test_the_rates_of_all_cases_add_up_to_less_than_1_in_1000() -> None:
    rates = {case.id: rate for case in all_cases() if (rate := rate_of(case)) > 0}
    assert len(rates) == 28
    total = sum(rates.values())
    print(f"false alarms: {total:.2e} a run")
    assert total < BUDGET


def rate_of(case: Case) -> float:
    return sum(_rate(name, wanted, case) for check in case.check for name, wanted in check.items())


def _rate(name: str, wanted: Any, case: Case) -> float:
    match name:
        case "distinct":
            [spec] = case.send.values()
            return fewer_than(wanted, spec["n"])
        case "spread":
            return fewer_than(wanted["at_least"], len(case.send))
        case "likelier":
            num_best = sum(name.startswith("best") for name in case.send)
            return exceeds(wanted["misses"], num_best, candidates=16, singles=32)
        case _:
            return 0.0


def fewer_than(distinct: int, samples: int) -> float:
    """A bound of P(fewer distinct texts). It takes two equal pairs without a text in common, or,
    where only two texts may be equal, three equal ones: P(three equal) <= P(two equal) ** 1.5."""
    assert samples - distinct <= 2
    two_pairs = comb(samples, 2) * comb(samples - 2, 2) / 2 * EQUAL_PAIR**2
    three = comb(samples, 3) * EQUAL_PAIR**1.5 if samples - distinct < 2 else 0.0
    return float(two_pairs + three)


def exceeds(misses: int, num_best: int, candidates: int, singles: int) -> float:
    """P(more than `misses` best candidates lie below the median of the singles), for any
    distribution: the larger of the two middle singles is a quantile of Beta(k, k - 1)."""
    k = singles // 2 + 1
    density = [
        k * comb(singles, k) * u ** (k - 1) * (1 - u) ** (singles - k) / STEPS
        for u in (i / STEPS for i in range(STEPS))
    ]
    return sum(
        weight * _more_than(misses, num_best, (i / STEPS) ** candidates)
        for i, weight in enumerate(density)
    )


def _more_than(count: int, trials: int, p: float) -> float:
    return 1 - sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count + 1))


def test_a_server_that_ignores_best_of_rarely_passes() -> None:
    assert 1 - _more_than(3, 24, 0.5) < 2e-4
