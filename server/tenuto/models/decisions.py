"""Which model is loaded next, and which ones make room: pure, from a snapshot of all of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

State = Literal["cold", "loading", "ready", "suspending", "asleep", "waking", "unloading", "failed"]
CHANGING = ("loading", "suspending", "waking", "unloading")
# These have the memory of a running engine: one that is leaving has it until it is gone.
AWAKE = ("ready", *CHANGING)
Ids = frozenset[str]
# Whether models that are awake, and others that sleep beside them, have room together.
Fits = Callable[[Ids, Ids], bool]
NONE: Ids = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model. Times are of one monotonic clock, in seconds.

    `waiting_since` is when the longest waiting request came, None without any. `wanted` is one to
    be loaded though nobody waits: its engine was lost, or its owner asked for it. Not before
    `retry_at` is it tried again. `dismissed` says where its owner wants it as soon as its requests
    have ended. One that `can_sleep` does so instead of being unloaded, where memory allows.
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
    can_sleep: bool = False
    dismissed: Literal["asleep", "cold"] | None = None

    @property
    def is_idle(self) -> bool:
        return self.leases == 0 and self.waiting_since is None


@dataclass(frozen=True)
class Decision:
    """`load` also wakes. `evicted` are those of `suspend` and `unload` that make room for another.
    `hold`: hand out no more leases, so that the model can go. `impossible`: too large, whatever
    were unloaded. `again_at`: when to decide anew though nothing happened."""

    load: str | None = None
    suspend: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    evicted: Ids = field(default=NONE, compare=False)
    hold: Ids = NONE
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
    needing = sorted(filter(_needs_loading, models), key=_urgency)
    decision = _going(models, fits, now)
    retries = [m.retry_at for m in needing if m.retry_at > now]
    decision = replace(decision, again_at=min([decision.again_at, *retries]))
    if any(m.state in CHANGING for m in models):
        return decision
    awake, asleep = (ids_of(filter(_stays, group)) for group in _by_memory(models))
    for model in needing:
        if model.retry_at > now:
            continue
        if fits(awake | {model.id}, asleep - {model.id}):
            return _with_room(decision, model, models, fits, now, turn_s)
        if model.state == "asleep":
            # Where it lies there is no room; elsewhere there may be, once it is cold.
            unload = {*decision.unload, model.id}
            return replace(decision, unload=tuple(sorted(unload)))
        decision = replace(decision, impossible=(*decision.impossible, model.id))
    return decision


def ids_of(models: Iterable[Snapshot]) -> Ids:
    return frozenset(m.id for m in models)


def _by_memory(models: Sequence[Snapshot]) -> tuple[list[Snapshot], list[Snapshot]]:
    """Those with an engine: the awake, and the sleeping."""
    return [m for m in models if m.state in AWAKE], [m for m in models if m.state == "asleep"]


def _going(models: Sequence[Snapshot], fits: Fits, now: float) -> Decision:
    """Those that leave though nobody needs their room: unused for too long, or dismissed."""
    unload = [m.id for m in models if _ttl_end(m) <= now]
    unload += [m.id for m in models if m.state == "asleep" and m.dismissed == "cold"]
    awake, asleep = map(ids_of, _by_memory(models))
    suspend: list[str] = []
    dismissed = [m for m in models if m.state == "ready" and m.dismissed]
    for m in dismissed:
        if m.leases == 0 and m.id not in unload:
            sleepers = asleep | {*suspend, m.id}
            may_sleep = m.can_sleep and m.dismissed == "asleep" and fits(awake - sleepers, sleepers)
            (suspend if may_sleep else unload).append(m.id)
    ends = [_ttl_end(m) for m in models if _ttl_end(m) > now]
    return Decision(
        suspend=tuple(suspend),
        unload=tuple(unload),
        hold=ids_of(dismissed),
        again_at=min(ends, default=math.inf),
    )


def _with_room(
    going: Decision,
    model: Snapshot,
    models: Sequence[Snapshot],
    fits: Fits,
    now: float,
    turn_s: float,
) -> Decision:
    """Loads the model, or lets others make room for it first."""
    gone = {*going.suspend, *going.unload}
    awake, asleep = _by_memory([m for m in models if m.id not in going.unload])
    others = [m for m in asleep if m.id != model.id]
    staying = ids_of(awake) - gone
    if fits(staying | {model.id}, ids_of(others) | {*going.suspend}):
        return going if gone else replace(going, load=model.id)
    ends = {m.id: _turn_end(m, model, turn_s) for m in awake if _may_go(m) and m.id in staying}
    again_at = min([going.again_at, *(end for end in ends.values() if end > now)])
    candidates = [m for m in awake if ends.get(m.id, math.inf) <= now]
    pinned = ids_of(filter(_stays, others))
    victims = _victims(candidates, lambda ids: fits(staying - ids | {model.id}, pinned))
    if victims is None:
        return replace(going, again_at=again_at)
    held = replace(going, hold=going.hold | ids_of(victims), again_at=again_at)
    if any(m.leases for m in victims):
        return held
    kept = _sleepers(staying - ids_of(victims) | {model.id}, [*others, *victims], fits)
    suspended = [m.id for m in victims if m.id in kept]
    unloaded = [m.id for m in [*victims, *others] if m.id not in kept]
    return replace(
        held,
        suspend=(*going.suspend, *suspended),
        unload=(*going.unload, *unloaded),
        evicted=frozenset(suspended + unloaded),
    )


def _victims(
    candidates: Sequence[Snapshot], suffices: Callable[[Ids], bool]
) -> list[Snapshot] | None:
    """As few as suffice when they are gone, the least recently used of the idle ones first; None
    when all of them do not. Sleepers do not count here: whichever is in the way can go."""
    chosen: list[Snapshot] = []
    for candidate in sorted(candidates, key=lambda m: (not m.is_idle, m.used_at)):
        if suffices(ids_of(chosen)):
            break
        chosen.append(candidate)
    for spared in list(chosen):
        if suffices(ids_of(chosen) - {spared.id}):
            chosen.remove(spared)
    return chosen if suffices(ids_of(chosen)) else None


def _sleepers(awake: Ids, candidates: Sequence[Snapshot], fits: Fits) -> Ids:
    """Which of them may sleep beside those awake: pinned ones, then the most recently used."""
    kept: Ids = NONE
    for m in sorted(candidates, key=lambda m: (not m.pinned, -m.used_at)):
        if (m.can_sleep or m.state == "asleep") and fits(awake, kept | {m.id}):
            kept |= {m.id}
    return kept


def _needs_loading(model: Snapshot) -> bool:
    """Also one that failed, once its back-off is over."""
    is_asked_for = model.waiting_since is not None or model.wanted
    return model.state in ("cold", "asleep", "failed") and is_asked_for


def _urgency(model: Snapshot) -> float:
    return math.inf if model.waiting_since is None else model.waiting_since


def _stays(model: Snapshot) -> bool:
    return model.pinned and not model.dismissed


def _may_go(model: Snapshot) -> bool:
    return model.state == "ready" and not model.pinned


def _turn_end(model: Snapshot, waiting: Snapshot, turn_s: float) -> float:
    """From when on `model` must make room. Nobody is disturbed for one that nobody waits for."""
    if waiting.waiting_since is None:
        return math.inf
    return -math.inf if model.is_idle else max(waiting.waiting_since, model.ready_at) + turn_s


def _ttl_end(model: Snapshot) -> float:
    has_engine = model.state in ("ready", "asleep") and model.is_idle
    if not has_engine or model.pinned or model.idle_ttl_s is None:
        return math.inf
    return model.used_at + model.idle_ttl_s
