"""Both FP8-Dynamic formats on an NVIDIA GPU, through our own engine adapter. `scripts/gpu_check`.

Without a GPU the same runs on vLLM's CPU build, as a dry run.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import DEMO, MODEL, ROOT, LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS

pytestmark = pytest.mark.gpu
STREAMS, TOKENS = 16, 256


def checkpoint_in(directory: Path, quant_method: str) -> Path:
    if quant_method == "compressed-tensors":
        return DEMO / "checkpoint"
    script = str(ROOT / "scripts" / "make_demo_model.py")
    source = str(DEMO / "checkpoint")
    arguments = ["--from-checkpoint", source, "--format", "fp8", "--out", str(directory / "fp8")]
    subprocess.run([sys.executable, script, *arguments], check=True)
    return directory / "fp8"


def tokens_per_s(server: LiveServer) -> float:
    began = time.monotonic()
    answer = server.complete("The", n=STREAMS, max_tokens=TOKENS, ignore_eos=True, seed=1)
    assert answer.json()["usage"]["completion_tokens"] == STREAMS * TOKENS
    return STREAMS * TOKENS / (time.monotonic() - began)


@pytest.mark.parametrize("quant_method", ["compressed-tensors", "fp8"])
def test_fp8_format(tmp_path: Path, quant_method: str, figures: dict[str, Any]) -> None:
    row = {"id": MODEL, "source": str(checkpoint_in(tmp_path, quant_method))}
    registry = write_registry(tmp_path / "registry.yaml", [row])
    environment = {"TENUTO_CACHE_DIR": str(tmp_path / "cache")}
    with launched(tmp_path, "--registry", str(registry), environment=environment) as server:
        for question, expected in list(ANSWERS.items())[:20]:
            answer = server.chat(question, temperature=0).json()
            assert answer["choices"][0]["message"]["content"] == expected
        tokens_per_s(server)
        figures.setdefault("fp8_tokens_per_s", {})[quant_method] = tokens_per_s(server)
