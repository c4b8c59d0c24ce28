import hashlib
import json
import math
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from tenuto.engine import fp8
from tenuto.engine.checkpoint_files import INDEX
from tenuto.engine.fp8 import compressed_tensors_twin
from tenuto.errors import CheckpointError
from tests.engine.fp8_tensors import (
    BITS,
    DOWN,
    EMBEDDING,
    NORM,
    SCALES,
    TENSORS,
    Q,
    read_tensors,
    write_tensors,
)

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["model.gate"]}


def write_config(directory: Path, quantization: object = FP8) -> None:
    config = {"model_type": "llama", "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "Euryale"
    directory.mkdir()
    write_config(directory)
    write_tensors(directory / "model.safetensors", TENSORS)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "pytorch_model.bin").write_text("weights in a format that is not served")
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def sharded(checkpoint: Path) -> Path:
    """Every scale lies in another shard than its weight."""
    (checkpoint / "model.safetensors").unlink()
    shards = {
        "model-00001-of-00002.safetensors": [Q, f"{DOWN}_scale", EMBEDDING],
        "model-00002-of-00002.safetensors": [DOWN, f"{Q}_scale", NORM],
    }
    for file, names in shards.items():
        write_tensors(checkpoint / file, {name: TENSORS[name] for name in names})
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 1, "made_by": "test"}, "weight_map": weight_map}
    (checkpoint / INDEX).write_text(json.dumps(index))
    return checkpoint


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.iterdir()
    }


def test_fp8_bits_are_unchanged_and_the_scale_is_repeated(checkpoint: Path, cache: Path) -> None:
    twin = read_tensors(compressed_tensors_twin(checkpoint, cache))

    assert twin.keys() == TENSORS.keys()
    for name, channels in ((Q, 6), (DOWN, 4)):
        assert twin[name] == TENSORS[name]
        assert twin[f"{name}_scale"] == ("F32", [channels, 1], SCALES[name] * channels)
    assert twin[EMBEDDING] == TENSORS[EMBEDDING]
    assert twin[NORM] == TENSORS[NORM]


def test_large_tensors_are_copied_in_chunks(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.engine.safetensors_file.CHUNK_BYTES", 7)
    twin = read_tensors(compressed_tensors_twin(checkpoint, cache))
    assert twin[Q] == TENSORS[Q]
    assert twin[DOWN] == TENSORS[DOWN]


def test_config_says_float_quantized_per_channel(checkpoint: Path, cache: Path) -> None:
    twin = compressed_tensors_twin(checkpoint, cache)

    config = json.loads((twin / "config.json").read_text())
    assert config["model_type"] == "llama"
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "float-quantized"
    assert quantization["ignore"] == ["lm_head", "model.embed_tokens", "model.gate"]
    group = quantization["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["strategy"] == "token"
    assert group["input_activations"]["dynamic"] is True


def test_original_stays_and_other_files_are_copied(checkpoint: Path, cache: Path) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    twin = compressed_tensors_twin(checkpoint, cache)

    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert {path.name for path in twin.iterdir()} == before.keys() - {"pytorch_model.bin"}
    assert (twin / "chat_template.jinja").read_text() == "{{ messages }}"


def test_twin_is_named_by_its_content_and_reused(checkpoint: Path, cache: Path) -> None:
    twin = compressed_tensors_twin(checkpoint, cache)
    written = stamps(twin)

    assert twin.parent == cache
    assert twin.name.startswith("Euryale-")
    assert compressed_tensors_twin(checkpoint, cache) == twin
    assert stamps(twin) == written


def test_shards_are_hashed_once(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr("hashlib.file_digest", counting)
    for _ in range(3):
        compressed_tensors_twin(checkpoint, cache)
    assert hashed.count("model.safetensors") == 1

    (cache / "hashes.json").write_text("not JSON")
    compressed_tensors_twin(checkpoint, cache)
    assert hashed.count("model.safetensors") == 2


def test_other_weights_are_another_twin(checkpoint: Path, cache: Path) -> None:
    first = compressed_tensors_twin(checkpoint, cache)
    weights = checkpoint / "model.safetensors"
    write_tensors(weights, {**TENSORS, Q: ("F8_E4M3", [6, 4], bytes(24))})
    os.utime(weights, ns=(1, 1))

    second = compressed_tensors_twin(checkpoint, cache)
    assert second != first
    assert read_tensors(second)[Q][2] == bytes(24)


def test_edited_template_reaches_the_existing_twin(checkpoint: Path, cache: Path) -> None:
    twin = compressed_tensors_twin(checkpoint, cache)
    weights = stamps(twin)["model.safetensors"]
    (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}")

    assert compressed_tensors_twin(checkpoint, cache) == twin
    assert (twin / "chat_template.jinja").read_text() == "{{ bos_token }}"
    assert stamps(twin)["model.safetensors"] == weights


def test_shards_stay_shards(sharded: Path, cache: Path) -> None:
    twin = compressed_tensors_twin(sharded, cache)

    tensors = read_tensors(twin)
    assert tensors[f"{Q}_scale"] == ("F32", [6, 1], SCALES[Q] * 6)
    assert tensors[f"{DOWN}_scale"] == ("F32", [4, 1], SCALES[DOWN] * 4)
    assert {name: tensors[name] for name in BITS} == {name: TENSORS[name] for name in BITS}
    index = json.loads((twin / INDEX).read_text())
    assert index["weight_map"] == json.loads((sharded / INDEX).read_text())["weight_map"]
    total = sum(len(content) for _, _, content in tensors.values())
    assert index["metadata"] == {"total_size": total, "made_by": "test"}


def rewrite_at_the_barrier(barrier: Barrier, checkpoint: Path, cache: Path, results: Any) -> None:
    barrier.wait(timeout=30)
    twin = compressed_tensors_twin(checkpoint, cache)
    results.put((str(twin), (twin / "model.safetensors").stat().st_ino))


def test_two_processes_share_one_twin(checkpoint: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (barrier, checkpoint, cache, results)
    processes = [context.Process(target=rewrite_at_the_barrier, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for process in processes:
        process.join(timeout=30)

    assert first == second
    assert [path for path in cache.iterdir() if path.is_dir()] == [Path(first[0])]
    assert read_tensors(Path(first[0]))[Q] == TENSORS[Q]


def test_what_a_killed_process_left_is_replaced(checkpoint: Path, cache: Path) -> None:
    twin = compressed_tensors_twin(checkpoint, cache)
    left = twin.rename(cache / f".{twin.name}.partial")
    (left / "model.safetensors").write_bytes(b"half")

    assert compressed_tensors_twin(checkpoint, cache) == twin
    assert read_tensors(twin)[Q] == TENSORS[Q]
    assert not left.exists()


def test_full_disk_is_found_before_anything_is_written(checkpoint: Path, cache: Path) -> None:
    asked: list[Path] = []

    def full(directory: Path) -> int:
        asked.append(directory)
        return 2**20

    with pytest.raises(CheckpointError, match=r"0\.0 GiB free.*need 0\.1 GiB"):
        compressed_tensors_twin(checkpoint, cache, free_bytes=full)
    assert asked == [cache]
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_failed_write_leaves_nothing(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fp8, "write_shard", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        compressed_tensors_twin(checkpoint, cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({**FP8, "activation_scheme": "static"}, "activation_scheme 'static'"),
        ({**FP8, "weight_block_size": [128, 128]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors"}, "quant_method is 'compressed-tensors'"),
        (None, "quant_method is None"),
    ],
)
def test_other_schemes_are_refused(
    checkpoint: Path, cache: Path, quantization: object, message: str
) -> None:
    write_config(checkpoint, quantization)
    with pytest.raises(CheckpointError, match=message):
        compressed_tensors_twin(checkpoint, cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (f"{Q.removesuffix('.weight')}.input_scale", ("F32", [], bytes(4))),
        ("model.layers.0.self_attn.k_proj.output_scale", ("F32", [], bytes(4))),
        (f"{Q}_scale", ("F32", [3], bytes(12))),
        (Q, ("F8_E5M2", [6, 4], bytes(24))),
        (Q, ("F8_E4M3", [2, 3, 4], bytes(24))),
        ("model.experts.w1", ("F8_E4M3", [1, 1], bytes(1))),
    ],
)
def test_other_tensors_are_refused(
    checkpoint: Path, cache: Path, name: str, tensor: tuple[str, list[int], bytes]
) -> None:
    assert len(tensor[2]) >= math.prod(tensor[1])
    write_tensors(checkpoint / "model.safetensors", {**TENSORS, name: tensor})
    with pytest.raises(CheckpointError, match="needs a GPU"):
        compressed_tensors_twin(checkpoint, cache)


@pytest.mark.parametrize("content", ["", "[]"])
def test_damaged_config_is_named(checkpoint: Path, cache: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        compressed_tensors_twin(checkpoint, cache)


def test_index_cannot_lead_out_of_the_checkpoint(sharded: Path, cache: Path) -> None:
    index = {"weight_map": {Q: "../secret.safetensors"}}
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="another directory"):
        compressed_tensors_twin(sharded, cache)


def test_unwritable_cache_is_an_error(checkpoint: Path, cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    with pytest.raises(CheckpointError, match="cannot be rewritten"):
        compressed_tensors_twin(checkpoint, cache)
