"""What one engine says of itself, without what vLLM's statistics cost.

Its own loggers register their metrics for the whole process, so that a second engine takes the
first one's away, and keep records of each token: a fifth of what a token costs in this process.
"""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import SchedulerStats

from tenuto.engine.types import EngineStats


class EngineReadings(PrometheusStatLogger):
    """The scheduler's last word, and sums since the engine's start. A kind of vLLM's own logger,
    since vLLM adds that one unless it is given one of its kind."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        self._last = SchedulerStats()
        self._preemptions = self._generated = self._queries = self._hits = 0

    def record(self, scheduler_stats: SchedulerStats | None, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is None:
            return
        self._last = scheduler_stats
        self._queries += scheduler_stats.prefix_cache_stats.queries
        self._hits += scheduler_stats.prefix_cache_stats.hits

    def count(self, state: Any, output: EngineCoreOutput, sent_at: Any, unused: None) -> None:
        """One request's part of one step: runs for each token, where vLLM would record it."""
        self._generated += len(output.new_token_ids)
        if output.events:
            preempted = EngineCoreEventType.PREEMPTED
            self._preemptions += sum(event.type is preempted for event in output.events)

    def read(self, unfinished_requests: int) -> EngineStats:
        # After the last request's abort there is no step that would say so.
        last = self._last if unfinished_requests else SchedulerStats()
        return EngineStats(
            unfinished_requests=unfinished_requests,
            running_sequences=last.num_running_reqs,
            waiting_sequences=last.num_waiting_reqs + last.num_skipped_waiting_reqs,
            kv_cache_usage=last.kv_cache_usage,
            preemptions=self._preemptions,
            prefix_queries_tokens=self._queries,
            prefix_hits_tokens=self._hits,
            generated_tokens=self._generated,
        )

    def log_engine_initialized(self) -> None:
        pass

    def record_admission_rejection(self, reason: str) -> None:
        pass

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        pass


def readings_of(llm: AsyncLLM) -> EngineReadings:
    """Of one made with `EngineReadings` as its logger. Before its first request."""
    readings: EngineReadings
    [readings] = llm.logger_manager.stat_loggers
    # The engine goes on saying how it is; nothing is recorded of each token.
    processor = llm.output_processor
    llm.log_stats = processor.log_stats = processor.lora_states.log_stats = False
    processor._update_stats_from_output = readings.count
    return readings
