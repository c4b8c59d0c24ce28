"""The metrics, one table: every name, its labels and its help."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

DURATION_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


Read = Callable[[], Mapping[str, int]]


class _Models(Collector):
    """Read when scraped, so that nothing is counted twice."""

    def __init__(self, unfinished: Read, failed_wakes: Read) -> None:
        self._unfinished, self._failed_wakes = unfinished, failed_wakes

    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily(
            "tenuto_engine_unfinished_requests",
            "Requests that the engine runs or has waiting; each choice counts.",
            labels=["model"],
        )
        for model, count in self._unfinished().items():
            gauge.add_metric([model], count)
        yield gauge
        counter = CounterMetricFamily(
            "tenuto_model_failed_wakes",
            "Wakes after which the model answered otherwise than before its sleep.",
            labels=["model"],
        )
        for model, count in self._failed_wakes().items():
            counter.add_metric([model], count)
        yield counter


class Metrics:
    def __init__(self, unfinished: Read, failed_wakes: Read) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Models(unfinished, failed_wakes))
        self.requests = Counter(
            "tenuto_requests",
            "Requests answered; 499 is a client that left.",
            ["route", "model", "status"],
            registry=self._registry,
        )
        self.duration = Histogram(
            "tenuto_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ["route"],
            buckets=DURATION_BUCKETS_S,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "tenuto_prompt_tokens", "Prompt tokens.", ["model"], registry=self._registry
        )
        self.completion_tokens = Counter(
            "tenuto_completion_tokens",
            "Completion tokens of the returned choices.",
            ["model"],
            registry=self._registry,
        )

    def render(self) -> bytes:
        return generate_latest(self._registry)
