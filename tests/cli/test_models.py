"""`tenuto models` in this process."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenuto.cli import app, main
from tenuto.errors import CheckpointError, ConfigError
from tests.conftest import Running, make_adapter, make_registry

DEMO = Path(__file__).parents[2] / "server/tenuto/demo/checkpoint"
HERE = ("on", "this", "host")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    lora = {"id": "lora", "source": str(make_adapter(tmp_path / "lora")), "license": "MIT"}
    make_registry(tmp_path, [{"id": "demo", "loras": [lora]}, {"id": "far", "source": "owner/far"}])
    return str(tmp_path / "registry.yaml")


def test_list(registry: str) -> None:
    lines = CliRunner().invoke(app, ["models", "list", "--registry", registry]).stdout.splitlines()
    rows = [line.split() for line in lines]
    assert ["demo", *HERE, "0.0", "MiB", "?", "model's", "1", "demo"] in rows
    assert ["lora", *HERE, "0.0", "MiB", "model's", "1", "MIT", "lora"] in rows
    assert ["far", "not", "pulled", "?", "model's", "1", "owner/far"] in rows


@pytest.mark.parametrize(("gpu", "fits"), [("24GiB", "yes"), ("1GiB", "no")])
def test_what_fits(tmp_path: Path, gpu: str, fits: str) -> None:
    make_registry(tmp_path, [{"id": "demo", "source": str(DEMO)}])
    path = str(tmp_path / "registry.yaml")
    listed = CliRunner().invoke(app, ["models", "list", "--registry", path, "--gpu", gpu])
    assert fits in listed.stdout


def test_states_of_a_running_server(registry: str, own: Running) -> None:
    own.engine()
    command = ["models", "list", "--registry", registry, "--base-url", f"{own.url}/v1"]
    rows = [line.split()[:2] for line in CliRunner().invoke(app, command).stdout.splitlines()]
    assert ["demo", "ready"] in rows


def test_a_server_that_does_not_answer(registry: str) -> None:
    command = ["models", "list", "--registry", registry, "--base-url", "http://127.0.0.1:1"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, ConfigError)
    assert error.message.startswith("--base-url http://127.0.0.1:1: ")


def test_sizes_on_disk(registry: str, tmp_path: Path) -> None:
    with (tmp_path / "checkpoint" / "model.safetensors").open("wb") as file:
        file.truncate(3 * 2**29)
    lines = CliRunner().invoke(app, ["models", "list", "--registry", registry]).stdout.splitlines()
    assert ["demo", *HERE, "1.5", "GiB"] in [line.split()[:6] for line in lines]


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


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("nope", ConfigError, "the registry has no 'nope'"),
        ("./nope", ConfigError, "no directory ./nope"),
        ("far", CheckpointError, "far is not on this host: run `tenuto models pull far`"),
    ],
)
@pytest.mark.parametrize("command", [("verify",), ("quantize", "out")])
def test_models_that_are_not_there(
    registry: str, command: tuple[str, ...], model: str, error: type[Exception], message: str
) -> None:
    arguments = ["models", command[0], model, *command[1:], "--registry", registry]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, error)
    assert str(result.exception) == message


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("demo", "chat template  problem  none: chat needs"),
        ("templated", "chat template  ok       the registry's"),
        ("embedder", "chat template  ok       none, and embeddings need none"),
        ("long", "context        problem  the registry's 99 tokens; the model has 9"),
        ("lora", "config   ok       LoRA of rank 8"),
    ],
)
def test_verify_knows_what_the_registry_says(tmp_path: Path, model: str, found: str) -> None:
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    lora = {"id": "lora", "source": str(make_adapter(tmp_path / "lora"))}
    rows: list[dict[str, Any]] = [
        {"id": "demo", "loras": [lora]},
        {"id": "templated", "chat_template": "template.jinja"},
        {"id": "embedder", "task": "embed"},
        {"id": "long", "max_model_len": 99},
    ]
    make_registry(tmp_path, rows)
    (tmp_path / "checkpoint" / "config.json").write_text('{"max_position_embeddings": 9}')
    arguments = ["models", "verify", model, "--registry", str(tmp_path / "registry.yaml")]
    result = CliRunner().invoke(app, arguments)
    assert found in result.stdout
    assert result.exit_code == 1


def test_main_turns_errors_into_an_exit_code(
    registry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tenuto", "models", "pull", "nope", "--registry", registry])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "tenuto: the registry has no 'nope'\n"
