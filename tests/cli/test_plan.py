"""`tenuto models plan`: for checkpoints that are all header, and GPUs that are not there."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tenuto.cli import app
from tenuto.errors import ConfigError
from tenuto.models.planner import gib
from tests.conftest import make_checkpoint
from tests.models.test_sizes import LLAMA_70B, NEMO_12B, make_model

HOST = ("--host-memory", "256GiB")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No GPU can be found, and no model but what a test makes."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def with_models(folder: Path, *rows: dict[str, Any]) -> None:
    models = [{"source": f"./{row['id']}", "max_model_len": 32768, **row} for row in rows]
    (folder / "registry.yaml").write_text(yaml.safe_dump({"models": models}))


@pytest.fixture
def models(folder: Path) -> Path:
    make_model(folder / "big", LLAMA_70B, fp8=True)
    make_model(folder / "other", LLAMA_70B, fp8=True)
    make_model(folder / "small", NEMO_12B, fp8=False)
    with_models(
        folder,
        {"id": "big"},
        {"id": "other"},
        {"id": "small", "quantization": "fp8"},
        {"id": "far", "source": "owner/far"},
    )
    return folder


def run(folder: Path, *arguments: str) -> Result:
    registry = str(folder / "registry.yaml")
    return CliRunner().invoke(app, ["models", "plan", "--registry", registry, *arguments])


def lines(folder: Path, *arguments: str) -> list[str]:
    result = run(folder, *arguments)
    assert result.exception is None
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_what_fits_on_one_gpu(models: Path) -> None:
    shown = lines(models, "--gpu", "140.4GiB", *HOST)
    assert shown[0] == "GPU 0: 140.4 GiB, usable 129.2 GiB"
    assert "big 67.7 GiB 320.0 KiB 1 32,768 193,280 5.9 yes" in shown
    assert "small 12.7 GiB 160.0 KiB 1 32,768 747,168 22.8 yes" in shown
    assert "far: unknown until it is pulled: tenuto models pull far" in shown
    assert "far ? ? ? ? ? ? ?" in shown
    together = shown[shown.index("Together") :]
    # Less what two sleepers keep of the GPU: `other` takes turns.
    assert "big 0 27.2 GiB 89,184" in together
    assert "small 0 13.6 GiB 89,184" in together
    assert "swap: other in place of big" in together
    assert together[-1] == "Asleep in 256.0 GiB of host memory: big, other, small"


def test_what_would_make_a_model_fit(models: Path) -> None:
    shown = lines(models, "--gpu", "79.6GiB", "--host-memory", "100GiB")
    assert (
        "big does not fit: a context of 32,768 tokens, and KV cache for 9,984. It would with "
        "`max_model_len: 9216`, or `kv_cache_dtype: fp8, max_model_len: 19456`, or "
        "`tensor_parallel_size: 2`"
    ) in shown
    assert "big 67.7 GiB 320.0 KiB 1 32,768 - - no" in shown
    assert shown[-1].endswith("host memory: big, small. No room for other")


def test_model_that_no_change_makes_fit(models: Path) -> None:
    shown = lines(models, "--gpu", "4GiB", *HOST)
    assert "small does not fit: 15.2 GiB of weights and work space, 3.7 GiB of GPU usable" in shown


def test_model_that_never_fits_beside_a_pinned_one(models: Path) -> None:
    with_models(models, {"id": "big"}, {"id": "other", "pinned": True})
    assert "never: big does not fit beside the pinned models" in lines(
        models, "--gpu", "140.4GiB", *HOST
    )


def test_broken_checkpoint_is_named_and_the_others_are_planned(models: Path) -> None:
    make_checkpoint(models / "empty")
    with_models(models, {"id": "empty"}, {"id": "small"})
    shown = lines(models, "--gpu", "48GiB", *HOST)
    assert "empty ? ? ? ? ? ? ?" in shown
    assert "empty: the model's config.json has no 'num_attention_heads'" in shown
    assert any(line.startswith("small 22.8 GiB") and line.endswith("yes") for line in shown)


@pytest.mark.parametrize(
    "gpus",
    [
        ("80GiB\u00d72", "24GiB"),
        ("80GiBx2", "24 GiB x1"),
        ("80 GiB*2", "24GiB"),
        ("80GiB", "80GiB", "24GiB"),
    ],
)
def test_gpus_can_be_named_in_short(models: Path, gpus: tuple[str, ...]) -> None:
    shown = lines(models, *(part for gpu in gpus for part in ("--gpu", gpu)), *HOST)
    assert shown[:3] == [
        "GPU 0: 80.0 GiB, usable 73.6 GiB",
        "GPU 1: 80.0 GiB, usable 73.6 GiB",
        "GPU 2: 24.0 GiB, usable 22.1 GiB",
    ]


def test_two_gpus_for_one_model(models: Path) -> None:
    with_models(models, {"id": "big", "tensor_parallel_size": 2})
    shown = lines(models, "--gpu", "79.6GiBx2", *HOST)
    assert "big 67.7 GiB 320.0 KiB 2 32,768 241,760 7.4 yes" in shown
    assert "big 0, 1 36.9 GiB 241,760" in shown


@pytest.mark.parametrize("text", ["141", "141GB", "x2", "GiB", "0GiB", "80GiBx0", "80GiBx2x2", ""])
@pytest.mark.parametrize("option", ["--gpu", "--host-memory"])
def test_sizes_that_are_none(models: Path, option: str, text: str) -> None:
    result = run(models, "--gpu", "80GiB", option, text)
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message.startswith(f"{option}: should be ")


def put_nvidia_smi(folder: Path, script: str) -> None:
    program = folder / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


SAYS = '[ "$1" = --query-gpu=uuid,memory.total ] && echo GPU-a, 143771 && echo GPU-b, 24564'


def test_gpus_of_this_host(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put_nvidia_smi(models, SAYS)
    shown = lines(models)
    assert shown[:2] == [
        "GPU 0: 140.4 GiB, usable 129.2 GiB",
        "GPU 1: 24.0 GiB, usable 22.1 GiB",
    ]
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert shown[-1].startswith(f"Asleep in {gib(memory_bytes * 8 // 10)} of host memory: ")


@pytest.mark.parametrize(
    ("visible", "sizes_gib"),
    [
        ("1", ["24.0"]),
        ("1,0", ["24.0", "140.4"]),
        ("GPU-b", ["24.0"]),
        ("0,7,1", ["140.4"]),
    ],
)
def test_gpus_that_engines_see(
    models: Path, monkeypatch: pytest.MonkeyPatch, visible: str, sizes_gib: list[str]
) -> None:
    """In the order in which CUDA counts them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    put_nvidia_smi(models, SAYS)
    shown = [line for line in lines(models) if line.startswith("GPU ")]
    assert [line.split()[2] for line in shown] == sizes_gib


@pytest.mark.parametrize("script", [None, "echo 24564; exit 9", "echo no devices", "true"])
def test_host_without_a_gpu(models: Path, script: str | None) -> None:
    if script is not None:
        put_nvidia_smi(models, script)
    result = run(models)
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message == (
        "no NVIDIA GPU was found here: name one, such as --gpu 141GiB or 80GiBx2"
    )


def test_ids_are_printed_as_they_are(folder: Path) -> None:
    make_model(folder / "model", NEMO_12B, fp8=True)
    assert json.loads((folder / "model" / "config.json").read_text())["quantization_config"]
    with_models(folder, {"id": "[red]model[/red]", "source": "./model"})
    shown = lines(folder, "--gpu", "48GiB", *HOST)
    assert sum(line.startswith("[red]model[/red] ") for line in shown) == 2
