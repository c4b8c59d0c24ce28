"""The memory that was named."""

import os
from pathlib import Path

import pytest

from tenuto.errors import ConfigError
from tenuto.models.devices import devices_of, sleep_bytes_of


@pytest.mark.parametrize(
    ("text", "sizes_gib"), [("141GiB", [141]), ("80GiBx2", [80, 80]), ("24 GiB \u00d7 1", [24])]
)
def test_devices_by_hand(text: str, sizes_gib: list[int]) -> None:
    assert [d.total_bytes >> 30 for d in devices_of([text], "--gpu")] == sizes_gib


@pytest.mark.parametrize("text", ["", "many", "0GiB", "80GiBx0"])
def test_a_bad_size_names_its_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu"):
        devices_of([text], "--gpu")


@pytest.mark.parametrize(("limit", "share"), [("1073741824", 0.8), ("max", None), ("1" * 30, None)])
def test_host_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, share: float | None
) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr("tenuto.models.devices.CGROUP_LIMIT", tmp_path / "memory.max")
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    expected = int((1 << 30) * share) if share else int(host_bytes * 0.8)
    assert sleep_bytes_of(None, "--host-memory") == expected


def test_host_memory_by_hand_or_by_default() -> None:
    assert sleep_bytes_of("256GiB", "--host-memory") == 256 << 30
    assert sleep_bytes_of(None, "--host-memory") > 1 << 30
    with pytest.raises(ConfigError, match="--host-memory"):
        sleep_bytes_of("much", "--host-memory")
