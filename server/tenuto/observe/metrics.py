"""The metrics, one table: every name, its labels and its help."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

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


class Children(dict[tuple[object, ...], Any]):
    """Of one metric by its labels' values: prometheus-client takes 4 us to find one."""

    def __init__(self, metric: Counter | Histogram) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[object, ...]) -> Any:
        child = self[values] = self._metric.labels(*values)
        return child


class Metrics:
    def __init__(self, unfinished: Read, failed_wakes: Read) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Models(unfinished, failed_wakes))
        self._requests = self._counter(
            "tenuto_requests",
            "Requests answered; 499 is a client that left.",
            ["route", "model", "status"],
        )
        self._duration = self._histogram(
            "tenuto_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ["route"],
        )
        self._prompt_tokens = self._counter("tenuto_prompt_tokens", "Prompt tokens.", ["model"])
        self._completion_tokens = self._counter(
            "tenuto_completion_tokens", "Completion tokens of the returned choices.", ["model"]
        )

    def _counter(self, name: str, help_text: str, labels: list[str]) -> Children:
        return Children(Counter(name, help_text, labels, registry=self._registry))

    def _histogram(self, name: str, help_text: str, labels: list[str]) -> Children:
        buckets = DURATION_BUCKETS_S
        return Children(
            Histogram(name, help_text, labels, buckets=buckets, registry=self._registry)
        )

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        self._requests[route, model, status].inc()
        self._duration[route,].observe(seconds)

    def used(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        self._prompt_tokens[model,].inc(prompt_tokens)
        self._completion_tokens[model,].inc(completion_tokens)

    def render(self) -> bytes:
        return generate_latest(self._registry)
