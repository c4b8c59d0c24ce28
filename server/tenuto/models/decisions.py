"""Which model is loaded next, and which ones make room: pure, from a snapshot of all of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["cold", "loading", "ready", "unloading", "failed"]
# These have memory: a model that is being unloaded has it until it is gone.
OCCUPYING = ("loading", "ready", "unloading")
Fits = Callable[[frozenset[str]], bool]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model. Times are of one monotonic clock, in seconds.

    `waiting_since` is when the longest waiting request came, None without any. `wanted` is one to
    be loaded though nobody waits: its engine was lost, or it was asked for at the start. Not
    before `retry_at` is it tried again.
    """

    id: str
    state: State
    leases: int = 0
    waiting_since: float | None = None
    used_at: float = 0.0
    ready_at: float = 0.0
    retry_at: float = 0.0
    wanted: bool = False
    pinned: bool = False
    idle_ttl_s: float | None = None

    @property
    def is_idle(self) -> bool:
        return self.leases == 0 and self.waiting_since is None


@dataclass(frozen=True)
class Decision:
    """`hold`: hand out no more leases, so that the model can go. `impossible`: too large, whatever
    were unloaded. `again_at`: when to decide anew though nothing has happened."""

    load: str | None = None
    unload: tuple[str, ...] = ()
    hold: frozenset[str] = frozenset()
    impossible: tuple[str, ...] = ()
    again_at: float = math.inf


def decide(models: Sequence[Snapshot], fits: Fits, now: float, turn_s: float) -> Decision:
    """At most one model is loaded at a time, that of the longest waiting request first.

    Idle models make room at once, the least recently used first. A busy one does when the request
    has waited for `turn_s` since both came, so that a model has served its queue before a switch,
    and no other waits for ever. With two models that are asked for without end and of which one
    fits, a request waits at most for `turn_s`, the longest running request of each, and two
    switches.
    """
    expired = tuple(m.id for m in models if _ttl_end(m) <= now)
    again_at = min((_ttl_end(m) for m in models if _ttl_end(m) > now), default=math.inf)
    needing = sorted(filter(_needs_loading, models), key=_urgency)
    again_at = min([again_at, *(m.retry_at for m in needing if m.retry_at > now)])
    if any(m.state in ("loading", "unloading") for m in models):
        return Decision(unload=expired, again_at=again_at)
    impossible = []
    for model in needing:
        if model.retry_at > now:
            continue
        if not fits(frozenset({model.id, *(m.id for m in models if _stays(m))})):
            impossible.append(model.id)
            continue
        return _make_room(model, models, fits, now, turn_s, expired, tuple(impossible), again_at)
    return Decision(unload=expired, impossible=tuple(impossible), again_at=again_at)


def _make_room(
    model: Snapshot,
    models: Sequence[Snapshot],
    fits: Fits,
    now: float,
    turn_s: float,
    expired: tuple[str, ...],
    impossible: tuple[str, ...],
    again_at: float,
) -> Decision:
    loaded = frozenset(m.id for m in models if m.state in OCCUPYING) - set(expired)
    if fits(loaded | {model.id}):
        load = None if expired else model.id
        return Decision(load, expired, impossible=impossible, again_at=again_at)
    ends = {m.id: _turn_end(m, model, turn_s) for m in models if _may_go(m) and m.id in loaded}
    victims = _victims(model, [m for m in models if ends.get(m.id, math.inf) <= now], loaded, fits)
    again_at = min([again_at, *(end for end in ends.values() if end > now)])
    if victims is None:
        return Decision(unload=expired, impossible=impossible, again_at=again_at)
    hold = frozenset(m.id for m in victims)
    busy = any(m.leases for m in victims)
    unload = expired if busy else (*expired, *hold)
    return Decision(None, unload, hold, impossible, again_at)


def _victims(
    model: Snapshot, candidates: Sequence[Snapshot], loaded: frozenset[str], fits: Fits
) -> list[Snapshot] | None:
    """As few as make room, the least recently used of the idle ones first; None: not enough."""
    chosen: list[Snapshot] = []
    for candidate in sorted(candidates, key=lambda m: (not m.is_idle, m.used_at)):
        if fits(loaded - {m.id for m in chosen} | {model.id}):
            break
        chosen.append(candidate)
    for spared in list(chosen):
        others = {m.id for m in chosen if m is not spared}
        if fits(loaded - others | {model.id}):
            chosen.remove(spared)
    return chosen if fits(loaded - {m.id for m in chosen} | {model.id}) else None


def _needs_loading(model: Snapshot) -> bool:
    """Also one that failed, once its back-off is over."""
    is_asked_for = model.waiting_since is not None or model.wanted
    return model.state in ("cold", "failed") and is_asked_for


def _urgency(model: Snapshot) -> float:
    return math.inf if model.waiting_since is None else model.waiting_since


def _stays(model: Snapshot) -> bool:
    return model.pinned and model.state in OCCUPYING


def _may_go(model: Snapshot) -> bool:
    return model.state == "ready" and not model.pinned


def _turn_end(model: Snapshot, waiting: Snapshot, turn_s: float) -> float:
    """From when on `model` must make room. Nobody is disturbed for one that nobody waits for."""
    if waiting.waiting_since is None:
        return math.inf
    return -math.inf if model.is_idle else max(waiting.waiting_since, model.ready_at) + turn_s


def _ttl_end(model: Snapshot) -> float:
    if model.state != "ready" or model.pinned or not model.is_idle or model.idle_ttl_s is None:
        return math.inf
    return model.used_at + model.idle_ttl_s
