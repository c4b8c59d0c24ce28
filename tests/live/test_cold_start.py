"""How long a client waits: the whole server cold, a model cold, ready. The figures of
docs/benchmarks.md: `.venv/bin/python -m pytest -s tests/live/test_cold_start.py`."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from tests.live.conftest import DEMO, ROOT, LiveServer, launched, write_registry
from tests.live.knowledge import HELLO

pytestmark = pytest.mark.live
FIRST, BESIDE, IN_PLACE = "one", "two", ["three", "four", "one"]
# Two tiny models, each with the work space that one is taken to need.
GPU = "6GiB"
TENUTO = str(Path(sys.executable).with_name("tenuto"))
NUM_READY = 9
# On two cores that others use too.
MAX_FIRST_ANSWER_S, MAX_COLD_S = 17.0, 4.0


def first_token_s(server: LiveServer, model: str) -> float:
    """From the request to the first token of its stream."""
    messages = [{"role": "user", "content": HELLO}]
    body = {"model": model, "messages": messages, "stream": True, "temperature": 0}
    began = time.monotonic()
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                return time.monotonic() - began
    raise AssertionError(f"{model} said nothing")


def phases(server: LiveServer, model: str) -> str:
    """Of the model's last start, as the log tells them."""
    found = re.findall(rf"model {model}: engine started in (.+)", server.log.read_text())
    return str(found[-1])


def test_seconds_until_the_first_token(tmp_path: Path) -> None:
    rows = [{"id": name, "load": "on_demand"} for name in {BESIDE, *IN_PLACE} - {FIRST}]
    registry = write_registry(tmp_path / "registry.yaml", [{"id": FIRST}, *rows])
    began = time.monotonic()
    environment = {"TENUTO_GPUS": GPU}
    with launched(tmp_path, "--registry", str(registry), environment=environment) as server:
        first_token_s(server, FIRST)
        figures = {"process start to first answer": time.monotonic() - began}
        details = {FIRST: phases(server, FIRST)}
        ready_s = median(first_token_s(server, FIRST) for _ in range(NUM_READY))
        for model in [BESIDE, *IN_PLACE]:
            place = "beside another" if model == BESIDE else "in place of another"
            figures[f"{model}, cold, {place}"] = first_token_s(server, model)
            details[model] = phases(server, model)
    cold = list(figures.values())[1:]
    print(f"\nready: {ready_s * 1000:.0f} ms, median of {NUM_READY}")
    for name, seconds in figures.items():
        print(f"{name}: {seconds:.1f} s")
    for model, line in details.items():
        print(f"engine of {model}: {line}")
    assert figures["process start to first answer"] <= MAX_FIRST_ANSWER_S
    assert max(cold) <= MAX_COLD_S
    assert ready_s < min(cold)


def test_warming_fills_the_caches(tmp_path: Path) -> None:
    """A checkpoint that the CPU cannot read as it is, and one that does not start."""
    checkpoint, cache = tmp_path / "fp8", tmp_path / "cache"
    script = str(ROOT / "scripts" / "make_demo_model.py")
    source = str(DEMO / "checkpoint")
    made = ["--from-checkpoint", source, "--format", "fp8", "--out", str(checkpoint)]
    subprocess.run([sys.executable, script, *made], check=True)
    rows = [{"id": "fp8", "source": str(checkpoint)}, {"id": "broken", "gpu_memory": "1MiB"}]
    registry = write_registry(tmp_path / "registry.yaml", rows)
    run = subprocess.run(
        [TENUTO, "models", "warm", "--registry", str(registry)],
        env={**os.environ, "TENUTO_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    print(f"\n{run.stdout}{run.stderr}")
    warmed, broken, imported = run.stdout.splitlines()
    assert re.fullmatch(r"model fp8: \d+\.\d s \(.*connection \d+\.\d.*\)", warmed)
    assert broken.startswith("model broken: did not start: ")
    assert re.search(r"imported: \d+\.\d s here, beside [1-9]\d*\.\d s in the fork", imported)
    assert run.returncode == 1
    assert list(cache.rglob("*.safetensors"))
