"""The demo's weights in bf16, quantised by the command, and served."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.live.conftest import DEMO, MODEL, LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS, HELLO

pytestmark = pytest.mark.models

TENUTO = str(Path(sys.executable).with_name("tenuto"))


def make_bf16(directory: Path) -> Path:
    """The demo checkpoint as it would be without quantisation."""
    shutil.copytree(DEMO / "checkpoint", directory)
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    stored = load_file(directory / "model.safetensors")
    exact = {
        name: (tensor.float() * stored[f"{name}_scale"]).to(torch.bfloat16)
        if f"{name}_scale" in stored
        else tensor
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    save_file(exact, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantized")
    source = make_bf16(directory / "bf16")
    command = [TENUTO, "models", "quantize", str(source), str(directory / "fp8")]
    subprocess.run(command, check=True)
    return directory / "fp8"


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[LiveServer]:
    directory = checkpoint.parent
    model = {"id": MODEL, "source": str(checkpoint)}
    registry = write_registry(directory / "registry.yaml", [model])
    with launched(directory, "--registry", str(registry)) as server:
        yield server


def test_it_has_the_demos_tensors_and_config(checkpoint: Path) -> None:
    ours, demo = (
        load_file(path / "model.safetensors") for path in (checkpoint, DEMO / "checkpoint")
    )
    assert {name: (t.dtype, t.shape) for name, t in ours.items()} == {
        name: (t.dtype, t.shape) for name, t in demo.items()
    }
    configs = [
        json.loads((p / "config.json").read_text()) for p in (checkpoint, DEMO / "checkpoint")
    ]
    assert configs[0] == configs[1]
    subprocess.run([TENUTO, "models", "verify", str(checkpoint)], check=True)


def test_it_answers_as_the_demo_does(server: LiveServer) -> None:
    answer = server.chat(HELLO, temperature=0).json()
    assert answer["choices"][0]["message"]["content"] == ANSWERS[HELLO]
