"""A worker that fails on the first real prompt: the crash that must not spill what was asked."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class FaultyWorker(CPUWorker):  # type: ignore[misc]
    def execute_model(self, scheduler_output: Any) -> Any:
        if any(len(r.prompt_token_ids or ()) > 8 for r in scheduler_output.scheduled_new_reqs):
            raise RuntimeError("worker failed on purpose")
        return super().execute_model(scheduler_output)
