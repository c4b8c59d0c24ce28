"""Settings: where they come from, and that each is documented."""

import re
from pathlib import Path
from typing import Any

import pytest

from tenuto.cli.serve import settings_from
from tenuto.errors import ConfigError
from tenuto.settings import Settings
from tenuto.wire.bounds import Bounds

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"
VALUES: dict[str, tuple[str, Any]] = {
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "registry": ("/r.yaml", Path("/r.yaml")),
    "models": ("a,b", "a,b"),
    "api_key_file": ("/k", Path("/k")),
    "admin_key_file": ("/k", Path("/k")),
    "admin_remote": ("1", True),
    "no_auth": ("true", True),
    "watch": ("1", True),
    "cors_origins": ('["http://a"]', ["http://a"]),
    "strict_params": ("1", True),
    "share_prefix_cache": ("0", False),
    "gpus": ("80GiBx2", "80GiBx2"),
    "host_memory": ("64GiB", "64GiB"),
    "turn_s": ("2.5", 2.5),
    "max_wait_s": ("60", 60.0),
    "max_waiting": ("5", 5),
    "drain_s": ("0", 0.0),
    "request_timeout_s": ("5", 5.0),
    "keep_alive_s": ("0.5", 0.5),
    "state_dir": ("/s", Path("/s")),
    "cluster": ("head:6379", "head:6379"),
    "node_ip": ("10.0.0.2", "10.0.0.2"),
    "database_url": ("postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    "redis_url": ("redis://h", "redis://h"),
    "usage_days": ("30", 30),
    "cache_dir": ("/c", Path("/c")),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "slow_s": ("2.5", 2.5),
    "tls_cert": ("cert.pem", Path("cert.pem")),
    "tls_key": ("key.pem", Path("key.pem")),
    "bounds": ('{"n": 3}', Bounds(n=3)),
}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_comes_from_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = VALUES[name]
    assert getattr(settings_from({}), name) != value
    monkeypatch.setenv(f"TENUTO_{name.upper()}", text)
    assert getattr(settings_from({}), name) == value


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_PORT", "1234")
    assert settings_from({"port": 4321}).port == 4321


def test_each_bound_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_BOUNDS__STOP_STRINGS", "5")
    monkeypatch.setenv("TENUTO_BOUNDS__N", "2")
    assert settings_from({}).bounds == Bounds(stop_strings=5, n=2)


@pytest.mark.parametrize(
    ("variable", "text", "name"),
    [
        ("PORT", "70000", "port"),
        ("PORT", "http", "port"),
        ("DRAIN_S", "-1", "drain_s"),
        ("KEEP_ALIVE_S", "0", "keep_alive_s"),
        ("LOG_LEVEL", "loud", "log_level"),
        ("BOUNDS__N", "0", "bounds.n"),
        ("BOUNDS__M", "1", "bounds.m"),
    ],
)
def test_wrong_values_name_the_setting(
    variable: str, text: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TENUTO_{variable}", text)
    with pytest.raises(ConfigError) as caught:
        settings_from({})
    assert caught.value.message.startswith(f"setting {name}: ")
    assert "\n" not in caught.value.message


def test_values_that_are_not_json_name_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_CORS_ORIGINS", "http://a")
    with pytest.raises(ConfigError, match=r"cors_origins.*not valid JSON"):
        settings_from({})


def variables() -> set[str]:
    names = {f"TENUTO_{name.upper()}" for name in Settings.model_fields}
    bounds = {f"TENUTO_BOUNDS__{name.upper()}" for name in Bounds.model_fields}
    return names | bounds | {"TENUTO_API_KEYS", "TENUTO_ADMIN_KEYS"}


@pytest.mark.parametrize("variable", sorted(v for v in variables() if "__" not in v))
def test_every_setting_is_documented(variable: str) -> None:
    assert re.search(rf"\b{variable}(\b|__)", OPERATIONS.read_text())


def test_no_setting_is_documented_that_is_not_there() -> None:
    written = set(re.findall(r"\bTENUTO_[A-Z_]*[A-Z]\b", OPERATIONS.read_text()))
    assert written <= variables()


def test_the_passwords_of_urls_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_DATABASE_URL", "postgresql://u:hidden@h/d")
    monkeypatch.setenv("TENUTO_REDIS_URL", "redis://:hidden@h")
    assert "hidden" not in repr(settings_from({}))


@pytest.mark.parametrize("kind", [Settings, Bounds])
def test_every_setting_has_help(kind: type[Settings] | type[Bounds]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
