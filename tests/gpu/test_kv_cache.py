"""The KV cache is whole again after clients have left in mid-answer. `scripts/gpu_check`."""

import asyncio
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tenuto.bench.client import Address, Answer, Client
from tenuto.bench.load import Load
from tests.live.conftest import MODEL, LiveServer, launched, write_registry

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
# The cache holds one such request, and less than a fifth more: a block lost for each client that
# left, and it would wait for ever.
CONTEXT, KV_CACHE = 8192, "7MiB"
CLIENTS, ROUNDS, LEAVE_S = 32, 4, 1.0


def whole_cache_s(server: LiveServer, number: int) -> float:
    """Seconds of a request that takes all of it, and finds nothing of its prompt in it."""
    prompt = Random(number).choices(range(300, 900), k=CONTEXT - 16)
    began = time.monotonic()
    answer = server.complete(prompt, max_tokens=8, ignore_eos=True)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began


async def leave(server: LiveServer, turn: int) -> list[Answer]:
    load = Load(model=MODEL, max_tokens=4096, body={"ignore_eos": True})
    clients = [Client(Address(server.url, load.route, None), LEAVE_S) for _ in range(CLIENTS)]
    asked = (c.ask(load.content(turn, n), time.monotonic()) for n, c in enumerate(clients))
    return await asyncio.gather(*asked)


def test_disconnects_leave_nothing_behind(tmp_path: Path, figures: dict[str, Any]) -> None:
    row = {"id": MODEL, "max_model_len": CONTEXT, "gpu_memory": KV_CACHE}
    registry = write_registry(tmp_path / "registry.yaml", [row])
    with launched(tmp_path, "--registry", str(registry)) as server:
        before_s = whole_cache_s(server, 0)
        answers = [a for turn in range(ROUNDS) for a in asyncio.run(leave(server, turn))]
        assert {answer.error for answer in answers} == {"timeout"}
        assert sum(bool(answer.texts) for answer in answers) > len(answers) / 2
        after_s = whole_cache_s(server, 1)
        figures["kv_cache"] = {
            "disconnects": len(answers),
            "whole_cache_before_s": before_s,
            "whole_cache_after_s": after_s,
            "unfinished": server.unfinished(),
        }
        assert server.unfinished() == 0
