"""The policy on a clock of its own: many clients, few places, no engine."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from tenuto.models.decisions import Decision, Fits, Snapshot, decide


@dataclass
class Simulation:
    """Requests run side by side, each for its own time; `load_s` and `unload_s` are a switch's."""

    models: list[str]
    fits: Fits
    turn_s: float
    load_s: float
    unload_s: float
    now: float = 0.0
    num_loads: int = 0
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._states = {name: Snapshot(name, "cold") for name in self.models}
        self._waiting: dict[str, list[tuple[float, float]]] = {name: [] for name in self.models}
        self._held: frozenset[str] = frozenset()
        self._events: list[tuple[float, int, str, str, float]] = []
        self._numbers = count()

    def at(self, when: float, kind: str, model: str, run_s: float = 0.0) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, model, run_s))

    def run(self) -> "Simulation":
        while self._events:
            self.now, _, kind, model, run_s = heapq.heappop(self._events)
            self._happen(kind, model, run_s)
            again_at = self._decide()
            if self._events and again_at < self._events[0][0]:
                self.at(again_at, "tick", model)
        assert not any(self._waiting.values())
        return self

    def _happen(self, kind: str, name: str, run_s: float) -> None:
        model = self._states[name]
        match kind:
            case "asks":
                self._waiting[name].append((self.now, run_s))
            case "ends":
                model = replace(model, leases=model.leases - 1, used_at=self.now)
            case "loaded":
                model = replace(model, state="ready", ready_at=self.now, used_at=self.now)
            case "unloaded":
                model = replace(model, state="cold")
        self._states[name] = model

    def _decide(self) -> float:
        snapshots = [
            replace(m, waiting_since=min((w for w, _ in self._waiting[m.id]), default=None))
            for m in self._states.values()
        ]
        decision = decide(snapshots, self.fits, self.now, self.turn_s)
        self._apply(decision)
        for name, model in self._states.items():
            if model.state == "ready" and name not in decision.hold:
                self._serve(name)
        return decision.again_at

    def _apply(self, decision: Decision) -> None:
        for name in decision.unload:
            assert self._states[name].leases == 0
            self._states[name] = replace(self._states[name], state="unloading")
            self.at(self.now + self.unload_s, "unloaded", name)
        if decision.load is not None:
            self.num_loads += 1
            self._states[decision.load] = replace(self._states[decision.load], state="loading")
            self.at(self.now + self.load_s, "loaded", decision.load)
        occupied = {n for n, m in self._states.items() if m.state not in ("cold", "failed")}
        assert self.fits(frozenset(occupied), frozenset())

    def _serve(self, name: str) -> None:
        for asked_at, run_s in self._waiting[name]:
            self.waits.append(self.now - asked_at)
            self.at(self.now + run_s, "ends", name)
        model = self._states[name]
        self._states[name] = replace(model, leases=model.leases + len(self._waiting[name]))
        self._waiting[name] = []


def every(period_s: float, until_s: float) -> Iterator[float]:
    return (i * period_s for i in range(math.ceil(until_s / period_s)))
