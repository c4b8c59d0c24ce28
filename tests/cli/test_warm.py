"""`tenuto models warm` over the scripted engine, and what it refuses. tests/live has the rest."""

import asyncio
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tenuto.cli import app
from tenuto.cli.warm import warm_all
from tenuto.engine.fake import FakeBackend
from tenuto.errors import CheckpointError, ConfigError
from tenuto.models.planner import Device, Host
from tenuto.models.registry import Registry, load_registry
from tenuto.models.room import GpuRoom, Room
from tests.conftest import make_registry
from tests.models.test_sizes import LLAMA_70B, make_model

ROWS: list[dict[str, Any]] = [
    {"id": "one"},
    {"id": "two", "aliases": ["second"]},
    {"id": "far", "source": "owner/far"},
]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return make_registry(tmp_path, ROWS)


async def warmed(backend: FakeBackend, registry: Registry, room: Room) -> tuple[bool, list[str]]:
    output = StringIO()
    room.plan(registry.present())
    console = Console(file=output, width=40, highlight=False)
    all_started = await warm_all(backend, registry.present(), room, console)
    return all_started, output.getvalue().splitlines()


async def test_each_model_is_started_and_ended(registry: Registry) -> None:
    backend = FakeBackend()
    assert await warmed(backend, registry, Room()) == (
        True,
        ["model one: 0.0 s ()", "model two: 0.0 s ()"],
    )
    assert list(backend.engines) == ["one", "two"]
    async with asyncio.timeout(5):
        for engine in backend.engines.values():
            await engine.wait_lost()


async def test_one_that_fails_is_named_and_the_others_are_started(registry: Registry) -> None:
    backend = FakeBackend(fails=frozenset({"one"}))
    all_started, lines = await warmed(backend, registry, Room())
    assert not all_started
    assert lines == ["model one: did not start: told to fail", "model two: 0.0 s ()"]
    assert list(backend.engines) == ["two"]


async def test_one_that_has_no_room(tmp_path: Path) -> None:
    make_model(tmp_path / "checkpoint", LLAMA_70B, fp8=True)
    registry = make_registry_of(tmp_path, "models: [{id: big, source: ./checkpoint}]")
    room = GpuRoom(Host((Device(0, 24 << 30),), 0))
    assert await warmed(FakeBackend(), registry, room) == (
        False,
        ["model big: it is larger than the memory for models"],
    )


def make_registry_of(directory: Path, text: str) -> Registry:
    (directory / "registry.yaml").write_text(text)
    return load_registry(directory / "registry.yaml")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["nope"], ConfigError, "the registry has no 'nope'"),
        (["one", "far"], CheckpointError, "far is not on this host: run `tenuto models pull far`"),
    ],
)
def test_models_that_are_not_there(
    registry: Registry, tmp_path: Path, names: list[str], error: type[Exception], message: str
) -> None:
    arguments = ["models", "warm", *names, "--registry", str(tmp_path / "registry.yaml")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, error)
    assert str(result.exception) == message
