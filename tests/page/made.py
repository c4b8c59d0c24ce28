"""A status of several models with 15 minutes behind them, which no test has the time to wait for,
and weeks of usage. Always the same."""

import math
import random
from collections.abc import Iterator
from typing import Any

from tenuto.access.usage import DAY_S, UsageRow

INTERVAL_S = 5
POINTS = 180
GIB = 1 << 30
WEIGHTS_GIB = {"Llama-3.3-70B-Euryale-FP8": 68, "Qwen3-32B-FP8": 32, "Mistral-Small-24B": 24}


def status(now: float) -> dict[str, Any]:
    return {
        "object": "status",
        "now": now,
        "started_at": now - 3 * DAY_S - 4000,
        "interval_s": INTERVAL_S,
        "version": "0.1.0",
        "models": [
            _model("Llama-3.3-70B-Euryale-FP8", now, 9, state="ready", load_s=41.2, pinned=True),
            _model("Qwen3-32B-FP8", now, 4, state="ready", load_s=19.8, wake_s=1.1, devices=[1]),
            _model("Mistral-Small-24B", now, 0, state="asleep", load_s=15.3, wake_s=0.9),
            _model("Magnum-72B-FP8", now, 0, state="failed", reason=FAILED, devices=[]),
            _model("bge-m3", now, 0, state="cold", task="embed", devices=[]),
        ],
    }


FAILED = "model Magnum-72B-FP8: did not start: the KV cache needs 12.4 GiB, and 9.8 GiB are free"


def usage(until: float) -> Iterator[UsageRow]:
    """Of 30 days, by three keys on three models."""
    chance = random.Random(8)
    for day in range(30):
        for key, share in (("app", 5), ("research", 3), ("evals", 1)):
            for model, size in (("Llama-3.3-70B-Euryale-FP8", 4), ("Qwen3-32B-FP8", 2)):
                tokens = share * size * chance.randint(2_000, 9_000)
                yield UsageRow(
                    at=until - day * DAY_S,
                    key_id=key,
                    model=model,
                    endpoint="chat_completions",
                    status=200,
                    prompt_tokens=tokens,
                    completion_tokens=tokens // 3,
                    generated_tokens=tokens // 3,
                    duration_s=1.5,
                )


def _model(id: str, now: float, load: int, **fields: Any) -> dict[str, Any]:
    history = _history(now, load, random.Random(id))
    is_loaded = fields["state"] in ("ready", "asleep")
    return {
        "id": id,
        "task": "generate",
        "reason": None,
        "pinned": False,
        "can_sleep": True,
        "devices": [0],
        "weights_bytes": WEIGHTS_GIB[id] * GIB if is_loaded else None,
        "kv_cache_bytes": 24 * GIB if is_loaded else None,
        "running_requests": history["running_requests"][-1],
        "waiting_requests": history["waiting_requests"][-1],
        "load_s": None,
        "wake_s": None,
        "history": history,
        **fields,
    }


def _history(now: float, load: int, chance: random.Random) -> dict[str, list[Any]]:
    history: dict[str, list[Any]] = {
        name: []
        for name in (
            "at",
            "running_requests",
            "waiting_requests",
            "tokens_per_s",
            "ttft_p50_s",
            "ttft_p99_s",
            "kv_cache_usage",
        )
    }
    for point in range(POINTS):
        wave = 1 + 0.5 * math.sin(point / 23) + 0.2 * math.sin(point / 5)
        running = max(0, round(load * wave + chance.uniform(-1, 1))) if load else 0
        first = 0.04 + 0.006 * running + chance.uniform(0, 0.02) if running else None
        history["at"].append(now - (POINTS - 1 - point) * INTERVAL_S)
        history["running_requests"].append(running)
        history["waiting_requests"].append(max(0, running - load - 2))
        history["tokens_per_s"].append(round(running * chance.uniform(28, 34), 1))
        history["ttft_p50_s"].append(first)
        history["ttft_p99_s"].append(first and first * chance.uniform(1.6, 2.6))
        history["kv_cache_usage"].append(min(1.0, running * 0.055) if load else None)
    return history
