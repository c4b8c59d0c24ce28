"""The policy on a clock of its own: many clients, few places, no engine."""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from tenuto.models.decisions import AWAKE, NONE, Decision, Fits, Snapshot, decide


@dataclass(eq=False)
class Request:
    """Runs for `run_s` once it is served. A client that leaves does so `leaves_s` after it asked,
    whether it was served or not."""

    model: str
    run_s: float
    leaves_s: float | None = None
    asked_at: float = 0.0


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
        self._waiting: dict[str, list[Request]] = {name: [] for name in self.models}
        self._script: deque[Request] = deque()
        self._events: list[tuple[float, int, str, str | Request]] = []
        self._numbers = count()

    def asks(self, when: float, request: Request) -> None:
        self._at(when, "asks", request)

    def work(self, requests: Iterable[Request], num_clients: int) -> "Simulation":
        """So many clients take one request after the other, each when its last one has ended."""
        self._script.extend(requests)
        for _ in range(num_clients):
            self._next()
        return self.run()

    def run(self) -> "Simulation":
        while self._events:
            self.now, _, kind, subject = heapq.heappop(self._events)
            self._happen(kind, subject)
            again_at = self._decide()
            if self._events and again_at < self._events[0][0]:
                self._at(again_at, "tick", "")
        assert not any(self._waiting.values())
        return self

    def _at(self, when: float, kind: str, subject: str | Request) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, subject))

    def _next(self) -> None:
        if self._script:
            self._at(self.now, "asks", self._script.popleft())

    def _happen(self, kind: str, subject: str | Request) -> None:
        if isinstance(subject, Request):
            self._request(kind, subject)
        elif kind == "loaded":
            self._become(subject, state="ready", ready_at=self.now, used_at=self.now)
        elif kind == "unloaded":
            self._become(subject, state="cold")

    def _request(self, kind: str, request: Request) -> None:
        name = request.model
        if kind == "asks":
            request.asked_at = self.now
            self._waiting[name].append(request)
            if request.leaves_s is not None:
                self._at(self.now + request.leaves_s, "ends", request)
            return
        if request in self._waiting[name]:
            self._waiting[name].remove(request)
        else:
            self._become(name, leases=self._states[name].leases - 1, used_at=self.now)
        self._next()

    def _become(self, name: str, **fields: object) -> None:
        self._states[name] = replace(self._states[name], **fields)  # type: ignore[arg-type]

    def _decide(self) -> float:
        for name, waiting in self._waiting.items():
            since = min((request.asked_at for request in waiting), default=None)
            self._become(name, waiting_since=since)
        decision = decide(list(self._states.values()), self.fits, self.now, self.turn_s)
        self._apply(decision)
        for name, model in self._states.items():
            if model.state == "ready" and name not in decision.hold:
                self._serve(name)
        return decision.again_at

    def _apply(self, decision: Decision) -> None:
        for name in decision.unload:
            assert self._states[name].leases == 0
            self._become(name, state="unloading")
            self._at(self.now + self.unload_s, "unloaded", name)
        if decision.load is not None:
            self.num_loads += 1
            self._become(decision.load, state="loading")
            self._at(self.now + self.load_s, "loaded", decision.load)
        awake = frozenset(name for name, model in self._states.items() if model.state in AWAKE)
        assert self.fits(awake, NONE)

    def _serve(self, name: str) -> None:
        served, self._waiting[name] = self._waiting[name], []
        for request in served:
            self.waits.append(self.now - request.asked_at)
            if request.leaves_s is None:
                self._at(self.now + request.run_s, "ends", request)
        self._become(name, leases=self._states[name].leases + len(served))


def every(period_s: float, until_s: float) -> Iterator[float]:
    return (i * period_s for i in range(math.ceil(until_s / period_s)))
