"""`tenuto models` in this process."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenuto.cli import app, main
from tenuto.errors import ConfigError
from tests.conftest import make_adapter, make_registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    lora = {"id": "lora", "source": str(make_adapter(tmp_path / "lora")), "license": "MIT"}
    make_registry(tmp_path, [{"id": "demo", "loras": [lora]}, {"id": "far", "source": "owner/far"}])
    return str(tmp_path / "registry.yaml")


def test_list(registry: str) -> None:
    lines = CliRunner().invoke(app, ["models", "list", "--registry", registry]).stdout.splitlines()
    rows = [line.split() for line in lines]
    assert ["demo", "yes", "model's", "1", "demo"] in rows
    assert ["lora", "yes", "model's", "1", "MIT", "lora"] in rows
    assert ["far", "no", "model's", "1", "owner/far"] in rows


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nope", "the registry has no 'nope'"),
        ("demo", "demo is served from a directory"),
        ("lora", "lora is served from a directory"),
    ],
)
def test_pull_of_what_cannot_be_downloaded(registry: str, model: str, message: str) -> None:
    result = CliRunner().invoke(app, ["models", "pull", model, "--registry", registry])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message.startswith(message)


def test_main_turns_errors_into_an_exit_code(
    registry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tenuto", "models", "pull", "nope", "--registry", registry])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "tenuto: the registry has no 'nope'\n"
