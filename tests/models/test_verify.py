"""What `tenuto models verify` finds: the demo checkpoint, and copies with one thing broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenuto.cli import app
from tenuto.engine.safetensors_file import read_shard
from tenuto.models.verify import INDEX, Finding, Problem, findings, problems
from tests.conftest import make_adapter
from tests.engine.fp8_tensors import BITS, SCALES, TENSORS, Named, Q, read_tensors, write_tensors

DEMO = Path(__file__).parents[2] / "server" / "tenuto" / "demo" / "checkpoint"
WEIGHTS = "model.safetensors"
O_PROJ = "model.layers.1.self_attn.o_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = {**FP8, "weight_block_size": [4, 4]}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return shutil.copytree(DEMO, tmp_path / "demo")


@pytest.fixture
def sharded(demo: Path) -> Path:
    tensors = read_tensors(demo)
    (demo / WEIGHTS).unlink()
    names = sorted(tensors)
    files = {FIRST: names[:20], SECOND: names[20:]}
    for file, part in files.items():
        write_tensors(demo / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in files.items() for name in part}
    (demo / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return demo


def details(checkpoint: Path, check: str, **said: Any) -> list[str]:
    return [found.detail for found in findings(checkpoint, **said) if found.check == check]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite_tensors(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors: dict[str, Any] = dict(read_tensors(directory))
    change(tensors)
    write_tensors(directory / WEIGHTS, tensors)


def test_the_demo_is_whole(demo: Path) -> None:
    found = findings(demo, max_model_len=8192)
    assert not problems(demo)
    assert [finding.check for finding in found] == [
        *("config", "context", "tokenizer", "chat template", "weights", "FP8")
    ]
    assert found[-1].detail == (
        "compressed-tensors, a scale per channel, dynamic activations: 21 matrices"
    )


def test_shards(sharded: Path) -> None:
    assert not problems(sharded)
    assert details(sharded, "weights") == ["50 tensors in 2 files"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def no_template(demo: Path) -> None:
    (demo / "chat_template.jinja").unlink()


def shift_offsets(demo: Path) -> None:
    path = demo / WEIGHTS
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    first = f'"data_offsets":[0,{next(iter(read_shard(path).tensors.values())).num_bytes}]'
    assert first.encode() in header
    path.write_bytes(content.replace(b'"data_offsets":[0,', b'"data_offsets":[1,', 1))


def wrong_scale(tensors: dict[str, Any]) -> None:
    tensors[f"{O_PROJ}_scale"] = ("F32", [64, 1], bytes(256))


def no_weight(tensors: dict[str, Any]) -> None:
    del tensors[O_PROJ]


def no_scale(tensors: dict[str, Any]) -> None:
    del tensors[f"{O_PROJ}_scale"]


BREAKING: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "config", "config.json is missing"),
    "config": (lambda d: cut(d / "config.json", 100), "config", "or no JSON object"),
    "architecture": (
        lambda d: rewrite(d / "config.json", lambda c: c.pop("architectures")),
        *("config", "names no `architectures`"),
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer", "none of tokenizer"),
    "tokenizer": (lambda d: cut(d / "tokenizer.json", 999), "tokenizer", "cannot be loaded"),
    "template": (no_template, "chat template", "none: chat needs the registry's `chat_template`"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "weights", "no safetensors files"),
    "truncated": (lambda d: cut(d / WEIGHTS, 800_000), "weights", "is cut short: 800000 bytes"),
    "empty": (lambda d: cut(d / WEIGHTS, 0), "weights", "is cut short, or no safetensors file"),
    "header": (lambda d: cut(d / WEIGHTS, 99), "weights", "is cut short, or no safetensors file"),
    "pointer": (
        lambda d: (d / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        *("weights", "is a pointer of Git LFS"),
    ),
    "no JSON": (
        lambda d: (d / WEIGHTS).write_bytes((4).to_bytes(8, "little") + b"[{}]"),
        *("weights", "has a damaged header"),
    ),
    "offsets": (shift_offsets, "weights", "has wrong offsets"),
    "scale": (lambda d: rewrite_tensors(d, wrong_scale), "FP8", "is (64, 1), not (128, 1)"),
    "no scale": (lambda d: rewrite_tensors(d, no_scale), "FP8", f"{O_PROJ} has no scale"),
    "no weight": (lambda d: rewrite_tensors(d, no_weight), "FP8", f"{O_PROJ}_scale has no weight"),
    "no scheme": (
        lambda d: rewrite(d / "config.json", lambda c: c.pop("quantization_config")),
        *("FP8", "no `quantization_config` for its FP8 weights"),
    ),
    "damaged scheme": (
        lambda d: rewrite(
            d / "config.json", lambda c: c["quantization_config"].update(config_groups=[1])
        ),
        *("FP8", "is damaged"),
    ),
}


@pytest.mark.parametrize("what", BREAKING)
def test_one_thing_broken_is_one_problem(demo: Path, what: str) -> None:
    damage, check, detail = BREAKING[what]
    damage(demo)
    [problem] = problems(demo)
    assert problem.check == check
    assert detail in problem.detail


def test_pickled_weights_alone(demo: Path) -> None:
    (demo / WEIGHTS).rename(demo / "pytorch_model.bin")
    [problem] = problems(demo)
    assert problem.detail == (
        "no safetensors files; pytorch_model.bin is a format that is not loaded"
    )


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert problems(sharded) == [Problem("weights", f"{SECOND} is missing")]
    (sharded / INDEX).unlink()
    assert problems(sharded) == [Problem("weights", "1 files of 2 are there")]


def test_a_tensor_of_the_index_that_its_shard_lacks(sharded: Path) -> None:
    rewrite(sharded / INDEX, lambda index: index["weight_map"].update(extra=FIRST))
    assert problems(sharded) == [Problem("weights", f"{FIRST} lacks extra")]


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": 1}}', "not JSON"])
def test_an_index_that_is_none(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    assert problems(sharded) == [Problem("weights", f"{INDEX} is not an index")]


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({}, 8192),
        ({"rope_type": "linear", "factor": 4.0}, 32768),
        ({"type": "dynamic", "factor": 2}, 16384),
        ({"rope_type": "llama3", "factor": 8.0}, 8192),
    ],
)
def test_context(demo: Path, rope: dict[str, Any], longest: int) -> None:
    def stretch(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config["rope_scaling"] = rope

    rewrite(demo / "config.json", stretch)
    assert not problems(demo, max_model_len=longest)
    assert problems(demo, max_model_len=longest + 1) == [
        Problem("context", f"the registry's {longest + 1} tokens; the model has {longest}")
    ]


def test_a_context_that_is_not_said(demo: Path) -> None:
    rewrite(demo / "config.json", lambda config: config.pop("max_position_embeddings"))
    assert not problems(demo, max_model_len=10**6)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_in_another_file(demo: Path, file: str) -> None:
    no_template(demo)
    (demo / file).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert details(demo, "chat template") == [file]


def test_templates_that_need_not_be_there(demo: Path) -> None:
    no_template(demo)
    assert not problems(demo, chat_template="{{ messages }}")
    assert not problems(demo, task="embed")


def test_another_tokenizer_is_named(demo: Path) -> None:
    (demo / "tokenizer.json").rename(demo / "tokenizer.model")
    assert details(demo, "tokenizer") == [
        "tokenizer.model; only a tokenizer.json is tried out here"
    ]


def blocked(shape: list[int]) -> Named:
    scale = ("F32", shape, bytes(4 * shape[0] * shape[1]))
    return {Q: TENSORS[Q], f"{Q}_scale_inv": scale}


@pytest.mark.parametrize(
    ("quantization", "tensors", "expected"),
    [
        (FP8, TENSORS, "fp8, a scale per tensor, dynamic activations: 2 matrices"),
        (
            {"quant_method": "fp8", "activation_scheme": "static"},
            TENSORS,
            "fp8, a scale per tensor, static (not FP8-Dynamic) activations: 2 matrices",
        ),
        (BLOCKS, blocked([2, 1]), "fp8, a scale per block, dynamic activations: 1 matrices"),
        (BLOCKS, blocked([1, 2]), None),
        (FP8, {Q: TENSORS[Q], f"{Q}_scale": ("F32", [6, 1], bytes(24))}, None),
        (FP8, {Q: ("BF16", [6, 2], BITS[Q])}, None),
        (
            None,
            {Q: ("BF16", [6, 2], BITS[Q])},
            "not quantised; `quantization: fp8`, or `tenuto models quantize`",
        ),
        ({"quant_method": "awq"}, TENSORS, "another scheme: awq"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            TENSORS,
            "another scheme: compressed-tensors pack-quantized",
        ),
    ],
)
def test_schemes(demo: Path, quantization: Any, tensors: Named, expected: str | None) -> None:
    rewrite(demo / "config.json", lambda config: config.update(quantization_config=quantization))
    write_tensors(demo / WEIGHTS, tensors)
    found = [finding for finding in findings(demo) if finding.check == "FP8"]
    if expected is None:
        assert [type(finding) for finding in found] == [Problem]
    else:
        assert found == [Finding("FP8", expected)]


def test_a_lora(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "lora")
    write_tensors(adapter / "adapter_model.safetensors", {"a": ("F32", [1], SCALES[Q])})
    assert not problems(adapter)
    assert details(adapter, "config") == ["LoRA of rank 8"]
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").unlink()
    assert [problem.check for problem in problems(adapter)] == ["config", "weights"]


def test_the_command(demo: Path) -> None:
    good = CliRunner().invoke(app, ["models", "verify", str(demo)])
    assert good.exit_code == 0
    assert [line.split()[:2] for line in good.stdout.splitlines()][1] == ["config", "ok"]
    no_template(demo)
    bad = CliRunner().invoke(app, ["models", "verify", str(demo)])
    assert bad.exit_code == 1
    assert "chat template  problem  none: chat needs the registry's `chat_template`" in bad.stdout
