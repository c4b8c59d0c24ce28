from collections.abc import Callable
from pathlib import Path

import pytest

from tenuto.engine.safetensors_file import read_shard, write_shard
from tenuto.errors import CheckpointError
from tests.engine.fp8_tensors import TENSORS, read_tensors, write_tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    return path


def test_copy_has_the_same_tensors(source: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    shard = read_shard(source)
    write_shard(shard, tmp_path / "copy" / "model.safetensors")

    assert read_tensors(tmp_path / "copy") == TENSORS
    copied = read_shard(tmp_path / "copy" / "model.safetensors")
    assert copied.metadata == shard.metadata == {"format": "pt"}
    assert copied.num_bytes == shard.num_bytes == sum(len(t[2]) for t in TENSORS.values())


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def absurd_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16)


def header_of_the_wrong_type(path: Path) -> None:
    path.write_bytes((4).to_bytes(8, "little") + b"[{}]")


def tensor_without_offsets(path: Path) -> None:
    path.write_bytes((8).to_bytes(8, "little") + b'{"a":{}}')


@pytest.mark.parametrize(
    "damage",
    [cut_short, absurd_header, header_of_the_wrong_type, tensor_without_offsets, Path.unlink],
)
def test_damaged_file_is_named(source: Path, damage: Callable[[Path], None]) -> None:
    damage(source)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is (not|cut)"):
        read_shard(source)


def test_file_that_shrinks_while_it_is_copied_is_an_error(source: Path, tmp_path: Path) -> None:
    shard = read_shard(source)
    cut_short(source)
    with pytest.raises(CheckpointError, match="became shorter"):
        write_shard(shard, tmp_path / "copy.safetensors")
