"""`tenuto serve` and `tenuto models`, up to the start of the server."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tenuto.access.keys import Keys
from tenuto.access.new_key import NewKey
from tenuto.cli.serve import registry_path, require_keys, with_stored
from tenuto.errors import ConfigError
from tenuto.models.registry import Registry, chosen_models
from tenuto.settings import Settings
from tests.access.stores import opened
from tests.conftest import make_adapter, make_registry


def tenuto(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("tenuto")
    return subprocess.run(
        [command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_an_open_server_may_listen_on_loopback(host: str) -> None:
    require_keys(Settings(host=host), Keys())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.x"])
def test_an_open_server_may_not_listen_elsewhere(host: str) -> None:
    with pytest.raises(ConfigError, match="without API keys") as caught:
        require_keys(Settings(host=host), Keys())
    assert host in caught.value.message


def test_keys_or_the_owners_word_open_every_address() -> None:
    require_keys(Settings(host="0.0.0.0"), Keys(user=["sk-a"]))
    require_keys(Settings(host="0.0.0.0"), Keys(admin=["sk-a"]))
    require_keys(Settings(host="0.0.0.0", no_auth=True), Keys())


def test_stored_keys_count_also_when_the_last_was_revoked(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0")
    with opened(tmp_path) as store:
        with pytest.raises(ConfigError, match="without API keys"):
            require_keys(settings, stored_keys(tmp_path))
        key_id = store.create(NewKey())[0].key.id
        require_keys(settings, stored_keys(tmp_path))
        store.revoke(key_id)
        require_keys(settings, stored_keys(tmp_path))


def stored_keys(directory: Path) -> Keys:
    watcher = with_stored(Keys(), directory)
    watcher.store.engine.dispose()
    return watcher.keys


def test_serve_refuses_a_state_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(ConfigError, match="state directory"):
        with_stored(Keys(), tmp_path / "state")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    lora = {"id": "lora", "source": str(make_adapter(tmp_path / "lora"))}
    return make_registry(
        tmp_path,
        [
            {"id": "eager", "load": "eager"},
            {"id": "demand", "aliases": ["d"], "loras": [lora]},
            {"id": "far", "source": "owner/far", "load": "eager"},
        ],
    )


@pytest.mark.parametrize(
    ("models", "chosen"),
    [
        (None, ("eager",)),
        ("demand", ("demand",)),
        ("d, eager", ("demand", "eager")),
        ("d,demand,", ("demand",)),
        ("lora", ("demand",)),
        ("", ()),
    ],
)
def test_chosen_models(registry: Registry, models: str | None, chosen: tuple[str, ...]) -> None:
    assert chosen_models(registry, models) == chosen


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("eager,nope", "--models: the registry has no 'nope'; it has eager, demand, far"),
        ("far", "--models: far: its checkpoint is not on this host: run `tenuto models pull far`"),
    ],
)
def test_models_that_cannot_be_chosen(registry: Registry, models: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_models(registry, models)
    assert caught.value.message == message


def test_registry_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert registry_path(Settings()).parts[-2:] == ("demo", "registry.yaml")
    (tmp_path / "model_registry.yaml").touch()
    assert registry_path(Settings()) == Path("model_registry.yaml")
    assert registry_path(Settings(registry=Path("other.yaml"))) == Path("other.yaml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--registry", "bad.yaml"), "tenuto: bad.yaml: model 'demo': key `colour`: unknown key"),
        (("--registry", "gone.yaml"), "tenuto: gone.yaml: No such file or directory"),
        (("--host", "0.0.0.0"), "tenuto: without API keys the server listens on loopback only"),
    ],
)
def test_serve_refuses_in_one_line(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    document = {"models": [{"id": "demo", "source": "owner/demo", "colour": "red"}]}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(document))
    ended = tenuto("serve", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_models_list(tmp_path: Path) -> None:
    ended = tenuto("models", "list", cwd=tmp_path)
    assert ended.returncode == 0
    row = "tenuto-demo on this host 0.9 MiB ? 8192 1 Apache-2.0 tenuto-demo"
    assert row in [" ".join(line.split()) for line in ended.stdout.splitlines()]
