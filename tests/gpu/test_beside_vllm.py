"""Answers, tokens a second and the time until the first one, beside vLLM's own server.

`scripts/gpu_check`: with the largest checkpoint that can be made there. Without a GPU it is a dry
run, with the demo model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.asking import answers_of
from scripts.benchmarks.peers import KEY, MODEL
from tenuto.bench.client import Address
from tenuto.bench.figures import figures_of
from tenuto.bench.load import Load
from tests.gpu.conftest import DEVICES
from tests.gpu.servers import chat, tenuto, vllm
from tests.live.conftest import DEMO
from tests.live.knowledge import ANSWERS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(5400)]
STREAMS: Sequence[int] = (1, 4, 16, 64, 256) if DEVICES else (1, 4)
TOKENS, GREEDY_TOKENS = (128, 32) if DEVICES else (32, 16)
# Prompt and answer of each of the most streams, in a cache that then has room to spare.
TOKENS_OF_A_STREAM = 256
NAMES = ("tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50")
QUESTIONS = list(ANSWERS)[:100]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not DEVICES:
        return DEMO / "checkpoint"
    # Imports torch, for which the other tests need not wait.
    from tests.gpu.large import LARGE, make_large

    directory = tmp_path_factory.mktemp("large") / "checkpoint"
    make_large(directory, LARGE)
    return directory


def kv_cache_bytes(checkpoint: Path) -> int:
    """Keys and values, of 16 bits."""
    config = json.loads((checkpoint / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token: int = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    return token * TOKENS_OF_A_STREAM * max(*STREAMS, 16)


def throughput(url: str, streams: int) -> dict[str, Any]:
    """Of the second run: in the first one things are compiled."""
    load = Load(
        model=MODEL,
        streams=streams,
        requests=max(8, 2 * streams),
        max_tokens=TOKENS,
        body={"ignore_eos": True},
        timeout=600,
    )
    for turn in range(2):
        answers = answers_of(Address(url, load.route, KEY), load, turn)
    found = figures_of(answers, load)
    assert not found["failed"], found["first_error"]
    return {name: found[name] for name in NAMES}


def test_as_vllms_own_server(tmp_path: Path, checkpoint: Path, figures: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    answers: dict[str, list[str]] = {}
    # One after the other: there is room for one of these models.
    for start in (tenuto, vllm):
        with start(tmp_path, checkpoint, kv_cache_bytes(checkpoint)) as url:
            found[start.__name__] = {streams: throughput(url, streams) for streams in STREAMS}
            answers[start.__name__] = [chat(url, text, GREEDY_TOKENS) for text in QUESTIONS]
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    figures["beside_vllm"] = found
    figures["greedy_answers"] = {"asked": len(QUESTIONS), "the_same": same}
    assert len(QUESTIONS) == same == 100
