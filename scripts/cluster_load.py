"""What scripts/simulate_cluster.py runs: models, how long a request takes, and who asks when."""

from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np

HOUR_S = 3_600.0


class Kind(NamedTuple):
    size_gb: float
    parameters: float  # of a mixture of experts: those that one token uses
    gpus: int


KINDS = {
    "12B": Kind(13.6, 12.2e9, 1),
    "24B": Kind(24.9, 23.6e9, 1),
    "49B": Kind(52.0, 49.9e9, 2),
    "70B": Kind(72.7, 70.6e9, 2),
    "72B": Kind(75.2, 72.7e9, 2),
    "fp16": Kind(138.0, 69.0e9, 4),  # Midnight-Miqu, not quantised
    "235B": Kind(236.0, 22.0e9, 8),
}
# The most popular first.
NAMES = "70B 12B 70B 72B 24B 70B 235B 72B 12B 70B 70B fp16 70B 12B 49B 70B 70B 70B 72B 12B"
MODELS = [KINDS[name] for name in NAMES.split()]
# One GPU: what a step reads, and what a token costs, of the prompt or of the answer.
WEIGHTS_GB_PER_S, FLOPS = 2_000.0, 870e12
GPUS_PER_HOST, SURPLUS, USUAL_ONGOING, MAX_OF_USUAL = 8, 1.5, 64, 3.0
# Answers have the means of a log-normal distribution's quarters, 250 tokens in all.
ANSWERS, UNCACHED_PROMPT = (70.0, 142.0, 239.0, 550.0), 800.0
PEAK_LOAD, ZIPF, SEED, GROUP_S = 0.5, 1.5, 1, 6.0
NIGHT, PEAK_H, BURSTS_PER_DAY, BURST_S, BURST = 0.3, 20, 6, 300.0, 2.0
# The least popular are asked in sessions, at four times their mean.
IN_SESSIONS, SESSION_S, PAUSE_S = range(12, 20), 1_800.0, 5_400.0


@dataclass(frozen=True)
class Plan:
    name: str = ""
    hosts: int = 100
    min_replicas: int = 1
    target_ongoing: int = 64
    # Ray Serve's own is 1: at once to what is wanted.
    downscaling_factor: float = 0.5
    # What Ray Serve calls `downscale_to_zero_delay_s`.
    idle_s: float = 300.0
    disk_gb_per_s: float = 2.0
    begin_h: float = 0.0
    hours: float = 24.0
    # The traffic of so many hosts; 0: of those that there are.
    traffic_of: int = 0

    @property
    def max_ongoing(self) -> int:
        return ceil(self.target_ongoing * SURPLUS)


def service_s(kind: Kind, answer: float, ongoing: float) -> float:
    """One request's time beside as many others on its replica."""
    step_s = kind.size_gb / (kind.gpus * WEIGHTS_GB_PER_S)
    token_s = 2 * kind.parameters / (kind.gpus * FLOPS)
    return answer * step_s + ongoing * (UNCACHED_PROMPT + answer) * token_s


def per_replica(kind: Kind) -> float:
    """Requests per second of a replica, as a usual one is busy."""
    return USUAL_ONGOING / service_s(kind, float(np.mean(ANSWERS)), USUAL_ONGOING)


def rates(plan: Plan) -> list[float]:
    """Requests per second of each model, in the mean: at the peak they need `PEAK_LOAD` of all."""
    weights = [rank**-ZIPF for rank in range(1, len(MODELS) + 1)]
    gpus = [kind.gpus / per_replica(kind) for kind in MODELS]
    needed = sum(weight * each for weight, each in zip(weights, gpus, strict=True))
    usual = (plan.traffic_of or plan.hosts) * GPUS_PER_HOST * PEAK_LOAD
    return [weight * usual / needed for weight in weights]


def most(plan: Plan, rank: int) -> int:
    """`max` of a model's replicas."""
    usual = rates(plan)[rank] * session_factor(rank) / per_replica(MODELS[rank])
    return ceil(MAX_OF_USUAL * usual)


def session_factor(rank: int) -> float:
    return (SESSION_S + PAUSE_S) / SESSION_S if rank in IN_SESSIONS else 1.0


def day(rank: int, hours: Any) -> Any:
    """What a model's rate is multiplied by at those hours: the same in every run."""
    chance = np.random.default_rng([SEED, rank])
    begins = chance.uniform(0, 24, (chance.poisson(BURSTS_PER_DAY), 1))
    in_burst = ((hours >= begins) & (hours < begins + BURST_S / HOUR_S)).any(axis=0)
    ends = chance.exponential([PAUSE_S, SESSION_S] * 100).cumsum() / HOUR_S
    asked = np.searchsorted(ends, hours) % 2 if rank in IN_SESSIONS else 1
    wave = NIGHT + (1 - NIGHT) * (1 + np.cos((hours - PEAK_H) * np.pi / 12)) / 2
    return wave * np.where(in_burst, BURST, 1) * asked * session_factor(rank)


def arrivals(rank: int, plan: Plan) -> list[tuple[float, float, int]]:
    """Seconds since the beginning, tokens of each answer, and how many requests."""
    begins, found = np.arange(0, plan.hours * HOUR_S, GROUP_S), []
    means = rates(plan)[rank] * day(rank, plan.begin_h + begins / HOUR_S) * GROUP_S / len(ANSWERS)
    chance = np.random.default_rng([SEED, rank, 1])
    for answer in ANSWERS:
        counts, at = chance.poisson(means), begins + chance.uniform(0, GROUP_S, len(begins))
        pairs = zip(at.tolist(), counts.tolist(), strict=True)
        found += [(arrived, answer, count) for arrived, count in pairs if count]
    return sorted(found)
