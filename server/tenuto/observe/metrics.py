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
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

DURATION_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Unfinished(Collector):
    """Read when scraped, so that nothing is counted twice."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily(
            "tenuto_engine_unfinished_requests",
            "Requests that the engine runs or has waiting; each choice counts.",
            labels=["model"],
        )
        for model, count in self._read().items():
            gauge.add_metric([model], count)
        yield gauge


class Metrics:
    def __init__(self, unfinished: Callable[[], Mapping[str, int]]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Unfinished(unfinished))
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
