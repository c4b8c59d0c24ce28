"""FP8-Dynamic from 16-bit weights: the format bit by bit, decoded here without torch.

Marked `live`, since what is tested imports torch; no engine is started.
"""

import fcntl
import json
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenuto.cli import app
from tenuto.engine.checkpoint_files import INDEX
from tenuto.engine.fp8 import channelwise
from tenuto.errors import CheckpointError, ConfigError
from tenuto.models.verify import problems
from tests.engine.fp8_tensors import read_tensors, write_tensors

pytestmark = pytest.mark.models

Tensor = tuple[str, list[int], bytes]
HIDDEN, INNER, VOCABULARY, LAYERS = 24, 40, 32, 2
CODES = {"BF16": "e", "F16": "e", "F32": "f"}
Q, GATE = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.gate.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def encoded(values: list[float], dtype: str) -> bytes:
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{CODES[dtype]}", *values)


def decoded(content: bytes, dtype: str) -> list[float]:
    if dtype == "F8_E4M3":
        return [e4m3(byte) for byte in content]
    if dtype == "BF16":
        content = b"".join(b"\0\0" + content[at : at + 2] for at in range(0, len(content), 2))
        dtype = "F32"
    size = struct.calcsize(CODES[dtype])
    return list(struct.unpack(f"<{len(content) // size}{CODES[dtype]}", content))


def e4m3(byte: int) -> float:
    sign, exponent, mantissa = -1 if byte >> 7 else 1, byte >> 3 & 15, byte & 7
    assert byte & 127 != 127, "not a number"
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def half_unit(value: float) -> float:
    """Half the distance between e4m3's numbers about `value`."""
    exponent = max(-6, math.floor(math.log2(abs(value)))) if value else -6
    return 2.0 ** (exponent - 3) / 2


def matrix(rows: int, columns: int, dtype: str = "BF16") -> Tensor:
    """Random numbers of many magnitudes; one row is zeros."""
    values = [
        random.gauss(0, 1) * 10 ** random.uniform(-4, 0) * (row != 1) * 4.0**row
        for row in (row % 8 for row in range(rows))
        for _ in range(columns)
    ]
    return dtype, [rows, columns], encoded(values, dtype)


def llama(dtype: str = "BF16") -> dict[str, Tensor]:
    random.seed(1)
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, dtype)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = matrix(HIDDEN, HIDDEN, dtype)
        tensors[f"{prefix}.self_attn.q_proj.bias"] = (dtype, [4], encoded([1.0] * 4, dtype))
        for name, shape in {"gate_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}.items():
            tensors[f"{prefix}.mlp.{name}.weight"] = matrix(*shape, dtype)
        tensors[f"{prefix}.input_layernorm.weight"] = (dtype, [2], encoded([1.0] * 2, dtype))
    return {**tensors, "lm_head.weight": matrix(VOCABULARY, HIDDEN, dtype)}


def write_source(directory: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    write_tensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = write_source(tmp_path / "source", llama(), architectures=["LlamaForCausalLM"])
    (directory / "tokenizer.json").write_text('{"a": 1}')
    (directory / "pytorch_model.bin").write_text("pickle")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    return directory


def quantize(source: Path, destination: Path, **options: Any) -> dict[str, Tensor]:
    # Imported late, so that collecting this file does not import torch.
    from tenuto.engine.quantize import quantize

    quantize(source, destination, **options)
    return read_tensors(destination)


def is_projection(name: str) -> bool:
    return "_proj.weight" in name


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_value_is_the_nearest(tmp_path: Path, dtype: str) -> None:
    exact = llama(dtype)
    found = quantize(write_source(tmp_path / "source", exact), tmp_path / "out")
    quantised = [name for name in exact if found[name][0] == "F8_E4M3"]
    assert quantised == [name for name in exact if is_projection(name)]
    for name in quantised:
        _, (rows, columns), content = exact[name]
        assert found[name][1] == [rows, columns]
        assert found[f"{name}_scale"][:2] == ("F32", [rows, 1])
        values, stored = decoded(content, dtype), decoded(found[name][2], "F8_E4M3")
        for row, scale in enumerate(decoded(found[f"{name}_scale"][2], "F32")):
            part = slice(row * columns, (row + 1) * columns)
            peak = max(map(abs, values[part]))
            assert scale == pytest.approx(max(peak / 448, 1e-12), rel=1e-6)
            assert max(map(abs, stored[part])) == (448 if peak else 0)
            for value, number in zip(values[part], stored[part], strict=True):
                error = abs(number - value / scale)
                assert error <= half_unit(value / scale) * (1 + 1e-4)


def test_all_else_stays_bit_by_bit(source: Path, tmp_path: Path) -> None:
    found, exact = quantize(source, tmp_path / "out"), llama()
    assert found.keys() == exact.keys() | {f"{n}_scale" for n in exact if is_projection(n)}
    kept = [name for name in exact if not is_projection(name)]
    assert {name: found[name] for name in kept} == {name: exact[name] for name in kept}


def test_files(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("quantization_config") == channelwise(["lm_head"])
    assert config == json.loads((source / "config.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "1_Pooling")
    }
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"
    weights = [p for p in problems(tmp_path / "out") if p.check in ("weights", "FP8")]
    assert not weights
    assert not list(tmp_path.glob(".*"))


def test_shards_stay_shards(tmp_path: Path) -> None:
    tensors = llama()
    source = write_source(tmp_path / "source", tensors)
    whole = quantize(source, tmp_path / "whole")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {FIRST: names[:7], SECOND: names[7:]}
    for file, part in files.items():
        write_tensors(source / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in files.items() for name in part}
    (source / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    found = quantize(source, tmp_path / "out")
    assert found == whole
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(len(content) for *_, content in found.values())
    assert index["weight_map"] == {
        name: weight_map[name.removesuffix("_scale")] for name in sorted(found)
    }


def test_rows_in_blocks_give_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(source, tmp_path / "whole")
    monkeypatch.setattr("tenuto.engine.quantize.BLOCK", 3 * HIDDEN + 1)
    monkeypatch.setattr("tenuto.engine.quantize.CHUNK_BYTES", 7)
    assert quantize(source, tmp_path / "blocks") == whole


def test_routers_and_what_is_beside_the_language_model_stay(tmp_path: Path) -> None:
    expert = "model.layers.1.mlp.experts.0.up_proj.weight"
    vision = "visual.blocks.0.attn.proj.weight"
    tensors = {**llama(), GATE: matrix(4, 8), expert: matrix(8, 8), vision: matrix(8, 8)}
    found = quantize(write_source(tmp_path / "source", tensors), tmp_path / "out")
    assert [found[name][0] for name in (expert, GATE, vision)] == ["F8_E4M3", "BF16", "BF16"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = ["lm_head", GATE.removesuffix(".weight"), vision.removesuffix(".weight")]
    assert config["quantization_config"]["ignore"] == ignored


NOT_FINITE: Tensor = ("BF16", [1, 2], encoded([1.0, math.inf], "BF16"))


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (llama(), {"quantization_config": {"quant_method": "fp8"}}, "is quantised already"),
        ({Q: ("F8_E4M3", [1, 2], b"ab")}, {}, "is quantised already"),
        (llama(), {"model_type": "gpt2"}, "gpt2's matrices cannot be quantised"),
        ({Q: matrix(2, 2), "a.experts.w": ("BF16", [1, 1, 1], b"ab")}, {}, "experts in one tensor"),
        ({"lm_head.weight": matrix(2, 2)}, {}, "has no 16-bit or 32-bit matrices"),
        ({Q: NOT_FINITE}, {}, "has a value that is not finite"),
    ],
)
def test_sources_that_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    source = write_source(tmp_path / "source", tensors, **config)
    with pytest.raises(CheckpointError, match=message):
        quantize(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_destinations_that_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out: exists"):
        quantize(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such folder"):
        quantize(source, tmp_path / "nowhere" / "out")


def test_too_little_disk(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"0\.0 GiB free, and .* needs 0\.1 GiB"):
        quantize(source, tmp_path / "out", free_bytes=lambda _: 2**20)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tenuto.engine.quantize as module

    monkeypatch.setattr(module, "_write_matrix", fail)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        quantize(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_a_killed_process_left_is_replaced(source: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    (left / "1_Pooling").mkdir(parents=True)
    (left / "model-00009.safetensors").write_text("half")
    quantize(source, tmp_path / "out")
    assert not (tmp_path / "out" / "model-00009.safetensors").exists()
    assert not left.exists()


def test_another_process_that_writes_it(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another process is writing it"):
        quantize(source, tmp_path / "out")
    os.close(descriptor)


def test_the_command(source: Path, tmp_path: Path) -> None:
    arguments = ["models", "quantize", str(source), str(tmp_path / "out")]
    first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert isinstance(second.exception, ConfigError)
