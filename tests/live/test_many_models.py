"""Three models where memory holds one: real engines come and go, and no request is lost."""

import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.conftest import LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS, HELLO
from tests.live.test_cancellation import wait_until

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]
MODELS = ["one", "two", "owner/three"]
# A tiny model is taken to need 2.5 GiB of work space, so that this holds one of them.
GPU = "3GiB"
NUM_REQUESTS, NUM_CLIENTS, NUM_LEAVING, MAX_SWITCHES = 200, 20, 20, 40


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("crowded")
    rows = [{"id": name, "load": "on_demand"} for name in MODELS]
    registry = write_registry(directory / "registry.yaml", rows)
    environment = {"TENUTO_GPUS": GPU, "TENUTO_TURN_S": "2"}
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server


def ask(server: LiveServer, model: str, **fields: Any) -> httpx.Response:
    return server.chat(HELLO, model=model, temperature=0, **fields)


def test_every_request_is_answered_by_the_model_that_it_names(crowded: LiveServer) -> None:
    chance = random.Random(5)
    asked = [chance.choice(MODELS) for _ in range(NUM_REQUESTS)]
    leaving = set(chance.sample(range(NUM_REQUESTS), NUM_LEAVING))
    answered, lock = [], threading.Lock()

    def send(number: int) -> None:
        if number in leaving:
            with pytest.raises(httpx.TimeoutException):
                crowded.client.post(
                    "/v1/completions",
                    json={"model": asked[number], "prompt": "The", "max_tokens": 8000}
                    | {"ignore_eos": True},
                    timeout=0.3,
                )
            return
        answer = ask(crowded, asked[number])
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["choices"][0]["message"]["content"] == ANSWERS[HELLO]
        with lock:
            answered.append((asked[number], body["model"]))

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(send, range(NUM_REQUESTS)))
    assert len(answered) == NUM_REQUESTS - NUM_LEAVING
    assert all(asked_for == by for asked_for, by in answered)
    assert 3 <= switches(crowded) <= MAX_SWITCHES
    wait_until(lambda: len(crowded.engine_pids()) <= 1)


def test_one_engine_at_a_time(crowded: LiveServer) -> None:
    for model in MODELS:
        assert ask(crowded, model).status_code == 200
        wait_until(lambda: len(crowded.engine_pids()) == 1)


def switches(server: LiveServer) -> int:
    return len(re.findall(r"engine started", Path(server.log).read_text()))


def test_a_lost_engine_is_started_again(crowded: LiveServer) -> None:
    assert ask(crowded, MODELS[0]).status_code == 200
    (pid,) = crowded.engine_pids()
    os.kill(pid, signal.SIGKILL)
    assert ask(crowded, MODELS[0]).status_code == 200
