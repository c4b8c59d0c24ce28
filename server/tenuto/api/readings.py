"""The models as the metrics, the history and the page see them."""

from collections.abc import Mapping
from typing import get_args

from tenuto.access.guessing import Guesses
from tenuto.access.limits import Limiter
from tenuto.models.base import Models
from tenuto.models.decisions import State
from tenuto.models.slot import Slot
from tenuto.observe.metrics import Metrics, Reading

STATES: tuple[str, ...] = get_args(State)


def metrics_of(pool: Models, limiter: Limiter, guesses: Guesses) -> Metrics:
    def limits_hit() -> Mapping[str, int]:
        return {**limiter.refused, "guesses": guesses.refused}

    return Metrics(lambda: readings(pool), limits_hit)


def readings(pool: Models) -> list[Reading]:
    return list(map(_reading, pool.slots.values()))


def _reading(slot: Slot) -> Reading:
    done = slot.done
    return Reading(
        model=slot.entry.id,
        state=slot.state,
        states=STATES,
        running_requests=slot.leases,
        waiting_requests=len(slot.queue),
        transitions=done.counts,
        transition_s=done.seconds,
        evictions=done.evictions,
        failures=done.failures,
        failed_wakes=slot.failed_wakes,
        engine=slot.engine.stats() if slot.engine is not None else None,
    )
