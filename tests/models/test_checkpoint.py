"""Where checkpoints lie on this host."""

from pathlib import Path

import pytest

from tenuto.models.checkpoint import is_directory_source, locate, locate_adapter
from tests.conftest import make_adapter, make_checkpoint

COMMIT = "0123456789abcdef"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache of this test's own."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


def make_snapshot(hub: Path, *, ref: str | None = "main", weights: bool = True) -> Path:
    repo = hub / "models--owner--name"
    snapshot = make_checkpoint(repo / "snapshots" / COMMIT)
    if weights:
        (snapshot / "model.safetensors").touch()
    if ref is not None:
        (repo / "refs").mkdir()
        (repo / "refs" / ref).write_text(f"{COMMIT}\n")
    return snapshot


@pytest.mark.parametrize(
    ("source", "expected"),
    [("/a", True), ("./a", True), ("../a", True), ("~/a", True), ("owner/a", False)],
)
def test_directory_sources(source: str, expected: bool) -> None:
    assert is_directory_source(source) is expected


def test_directory_beside_the_registry(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "a" / "checkpoint")
    assert locate("./checkpoint", None, tmp_path / "a") == directory
    assert locate("../a/checkpoint", None, tmp_path / "a") == directory
    assert locate(str(directory), None, Path("/")) == directory


def test_directory_without_config(tmp_path: Path) -> None:
    assert locate(str(tmp_path), None, tmp_path) is None


def test_a_lora_without_safetensors_is_not_taken(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "lora")
    assert locate_adapter("./lora", tmp_path) == adapter
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert locate_adapter("./lora", tmp_path) is None


@pytest.mark.parametrize(
    ("ref", "revision"), [("main", None), ("v1", "v1"), (None, COMMIT), ("main", COMMIT)]
)
def test_snapshot_in_the_cache(hub: Path, ref: str | None, revision: str | None) -> None:
    snapshot = make_snapshot(hub, ref=ref)
    assert locate("owner/name", revision, hub) == snapshot


@pytest.mark.parametrize("revision", ["other", "v1"])
def test_snapshot_of_another_revision(hub: Path, revision: str) -> None:
    make_snapshot(hub)
    assert locate("owner/name", revision, hub) is None


def test_snapshot_without_weights_is_an_unfinished_download(hub: Path) -> None:
    make_snapshot(hub, weights=False)
    assert locate("owner/name", None, hub) is None


def test_nothing_in_the_cache(hub: Path) -> None:
    assert locate("owner/name", None, hub) is None


def test_cache_named_by_its_own_variable(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    make_snapshot(hub)
    assert locate("owner/name", None, hub) is None
    other = make_snapshot(tmp_path / "other")
    assert locate("owner/name", None, hub) == other
