"""Simulates a day of a large cluster: who waits, what it costs, which part is full first.

python -m scripts.simulate_cluster [--write]: prints two tables; --write puts them, and a plot, into
docs/scaling.md, which says what of the constants here and beside it is measured.
Requests of one model and one length that arrive within `GROUP_S` are one event.
"""

import argparse
from collections import Counter, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import simpy
from rich.console import Console
from rich.progress import track

from scripts import scaling_page as page
from scripts.cluster_load import (
    GPUS_PER_HOST,
    HOUR_S,
    MODELS,
    Kind,
    Plan,
    arrivals,
    most,
    per_replica,
    service_s,
)

# A replica's start, but for reading its weights; its end.
PROCESS_S, PREPARE_S, DRAIN_S = 7.0, 30.0, 15.0
# Ray Serve, as the server sets it; the look-back is in pushes of metrics.
UPSCALE_S, DOWNSCALE_S, LOOK_BACK = 5.0, 300.0, 3
Events = Generator[simpy.Event, Any, None]


@dataclass
class Deployment:
    rank: int
    kind: Kind
    most: int
    waiting: deque[tuple[float, float, int, bool]] = field(default_factory=deque)
    replicas: list[simpy.Process] = field(default_factory=list)
    # Of `ongoing`: by push, and its integral since the last one.
    means: deque[float] = field(default_factory=lambda: deque(maxlen=LOOK_BACK))
    area: float = 0.0
    changed: float = 0.0
    ongoing: int = 0
    running: int = 0
    ready: int = 0
    direction: int = 0
    since: float = 0.0


class Cluster:
    """One run. Waits are counted by the model's GPUs and by seconds, to a tenth."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.env = plan, simpy.Environment()
        self.free = [GPUS_PER_HOST] * plan.hosts
        self.freed = self.env.event()
        self.waits: page.Waits = Counter()
        self.cold_waits: page.Waits = Counter()
        self.arrived = self.served = self.cold_starts = 0
        minutes = ceil(plan.hours * 60) + 1
        self.requests, self.tokens = np.zeros(minutes), np.zeros(minutes)
        # At each push of metrics: the hour, GPUs in use, ready replicas.
        self.rounds: list[tuple[float, int, int]] = []
        self.deployments = [Deployment(at, MODELS[at], most(plan, at)) for at in range(len(MODELS))]

    def run(self) -> "Cluster":
        for deployment in sorted(self.deployments, key=lambda one: -one.kind.gpus):
            self._begin(deployment)
        self.env.process(self._control())
        self.env.run(self.plan.hours * HOUR_S)
        return self

    def _begin(self, to: Deployment) -> None:
        come = arrivals(to.rank, self.plan)
        first = sum(count for at, _, count in come if at < DOWNSCALE_S) / DOWNSCALE_S
        self._scale(
            to, max(self.plan.min_replicas, ceil(first / per_replica(to.kind))), is_warm=True
        )
        self.env.process(self._arrive(to, come))

    def _arrive(self, to: Deployment, come: Iterable[tuple[float, float, int]]) -> Events:
        for at, answer, count in come:
            yield self.env.timeout(at - self.env.now)
            self.arrived += count
            self._count(to, count)
            to.waiting.append((at, answer, count, not to.ready))
            # Front ends tell the controller at once of a request that finds no replica.
            if not to.replicas:
                self.cold_starts += 1
                self._scale(to, 1)
            self._serve(to)

    def _serve(self, of: Deployment) -> None:
        while of.waiting and (places := of.ready * self.plan.max_ongoing - of.running) > 0:
            at, answer, count, is_cold = of.waiting.popleft()
            if count > places:
                of.waiting.appendleft((at, answer, count - places, is_cold))
                count = places
            self._start(of, answer, count)
            waited = of.kind.gpus, round(self.env.now - at, 1)
            self.waits[waited] += count
            if is_cold:
                self.cold_waits[waited] += count

    def _start(self, of: Deployment, answer: float, count: int) -> None:
        of.running, minute = of.running + count, int(self.env.now // 60)
        self.requests[minute] += count
        self.tokens[minute] += count * answer
        ended = self.env.timeout(service_s(of.kind, answer, of.running / of.ready))
        assert ended.callbacks is not None
        ended.callbacks.append(lambda _: self._end(of, count))

    def _end(self, of: Deployment, count: int) -> None:
        of.running -= count
        self.served += count
        self._count(of, -count)
        self._serve(of)

    def _count(self, of: Deployment, change: int) -> None:
        of.area += of.ongoing * (self.env.now - of.changed)
        of.ongoing, of.changed = of.ongoing + change, self.env.now

    def _control(self) -> Events:
        """A controller that is full answers all the same, but later: its rounds become longer."""
        while True:
            hosts, replicas = self.plan.hosts, sum(of.ready for of in self.deployments)
            share = page.controller_share(hosts, replicas)
            hour, used = self.plan.begin_h + self.env.now / HOUR_S, hosts * GPUS_PER_HOST
            self.rounds.append((hour, used - sum(self.free), replicas))
            round_s = page.PUSH_S * max(1.0, share)
            yield self.env.timeout(round_s)
            for of in self.deployments:
                self._count(of, 0)
                of.means.append(of.area / round_s)
                of.area = 0.0
                self._decide(of)

    def _decide(self, of: Deployment) -> None:
        """As Ray Serve's policy: no more than the first until it runs, none only after the last."""
        if of.replicas and not of.ready:
            return
        current = len(of.replicas)
        desired = ceil(sum(of.means) / len(of.means) / self.plan.target_ongoing)
        desired = min(max(desired, self.plan.min_replicas, int(current > 1)), of.most)
        direction = (desired > current) - (desired < current)
        if direction != of.direction:
            of.direction, of.since = direction, self.env.now
        delay_s = UPSCALE_S if direction > 0 else DOWNSCALE_S if desired else self.plan.idle_s
        if direction and self.env.now - of.since >= delay_s:
            if direction < 0:
                # At least one goes.
                factor = self.plan.downscaling_factor
                desired = min(ceil(current + factor * (desired - current)), current - 1)
            self._scale(of, desired)
            of.direction = 0

    def _scale(self, of: Deployment, number: int, is_warm: bool = False) -> None:
        while len(of.replicas) > number:
            of.replicas.pop().interrupt()
        while len(of.replicas) < number:
            of.replicas.append(self.env.process(self._replica(of, is_warm)))

    def _replica(self, of: Deployment, is_warm: bool) -> Events:
        host, is_ready = -1, False
        try:
            while (host := self._room(of.kind.gpus)) < 0:
                yield self.freed
            self.free[host] -= of.kind.gpus
            start_s = PROCESS_S + of.kind.size_gb / self.plan.disk_gb_per_s + PREPARE_S
            yield self.env.timeout(0 if is_warm else start_s)
            of.ready, is_ready = of.ready + 1, True
            self._serve(of)
            yield self.env.event()
        except simpy.Interrupt:
            of.ready -= is_ready
        if host >= 0:
            yield self.env.timeout(DRAIN_S)
            self.free[host] += of.kind.gpus
            freed, self.freed = self.freed, self.env.event()
            freed.succeed()

    def _room(self, gpus: int) -> int:
        """The fullest host, so that empty ones stay for those that need all of one; -1: none."""
        fitting = ((free, host) for host, free in enumerate(self.free) if free >= gpus)
        return min(fitting, default=(0, -1))[1]


DAYS = (
    Plan("100, `min: 1`, factor 1", downscaling_factor=1.0),
    Plan("100, `min: 1`"),
    Plan("100, `min: 1`, shared disk", disk_gb_per_s=0.5),
    Plan("100, `min: 0`", min_replicas=0),
    Plan("100, `min: 0`, an hour idle", min_replicas=0, idle_s=HOUR_S),
    Plan("10, `min: 1`", hosts=10),
    Plan("10, `min: 0`", hosts=10, min_replicas=0),
)
EVENINGS = [Plan(hosts=hosts, begin_h=18, hours=3) for hosts in (10, 25, 50, 100, 200, 400)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md, with its plot")
    is_written = parser.parse_args().write
    plans = track([*DAYS, *EVENINGS], "Simulating", console=Console(stderr=True))
    runs = [Cluster(plan).run() for plan in plans]
    page.show(runs[: len(DAYS)], runs[len(DAYS) :], is_written)


if __name__ == "__main__":
    main()
