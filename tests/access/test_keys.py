"""Keys: where they come from, and who is let in."""

from pathlib import Path

import pytest

from tenuto.access.keys import Keys, keys_from
from tenuto.errors import AuthError, ConfigError, UnknownKey

KEYS = Keys(user=["sk-user", "sk-other"], admin=["sk-admin"])
NO_KEY = "Authentication Error, No api key passed in."
MALFORMED = "Authentication Error, Malformed API Key passed in. Ensure Key has `Bearer ` prefix."


@pytest.mark.parametrize(
    ("header", "role"),
    [
        ("Bearer sk-user", "user"),
        ("Bearer sk-other", "user"),
        ("bearer sk-user", "user"),
        ("Bearer  sk-admin ", "admin"),
    ],
)
def test_let_in(header: str, role: str) -> None:
    key = KEYS.authenticate(header)
    assert key is not None
    assert key.role == role


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, NO_KEY),
        ("", NO_KEY),
        ("sk-user", MALFORMED),
        ("Basic sk-user", MALFORMED),
        ("Bearer", MALFORMED),
        ("Bearer ", MALFORMED),
    ],
)
def test_refused_without_a_key(header: str | None, message: str) -> None:
    with pytest.raises(AuthError) as caught:
        KEYS.authenticate(header)
    assert (caught.value.message, caught.value.param) == (message, "None")
    assert caught.value.type == "auth_error"


@pytest.mark.parametrize("secret", ["sk-userx", "sk-use", "SK-USER", "sk-user sk-user", "\xff"])
def test_unknown_key_is_not_repeated(secret: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        KEYS.authenticate(f"Bearer {secret}")
    assert caught.value.message == "Authentication Error, Invalid API key passed in."
    assert caught.value.param == "key"


@pytest.mark.parametrize("header", [None, "nonsense", "Bearer x"])
def test_open_server_lets_everyone_in(header: str | None) -> None:
    assert not Keys()
    assert Keys().authenticate(header) is None


def test_secrets_are_not_kept() -> None:
    held = repr(vars(KEYS)) + repr(KEYS.authenticate("Bearer sk-user"))
    assert "sk-user" not in held


def test_keys_are_taken_out_of_the_environment() -> None:
    environment = {
        "TENUTO_API_KEYS": "sk-a, sk-b,,",
        "TENUTO_ADMIN_KEYS": "sk-c",
        "PATH": "/bin",
    }
    keys = keys_from(environment, None, None)
    assert environment == {"PATH": "/bin"}
    for secret, role in [("sk-a", "user"), ("sk-b", "user"), ("sk-c", "admin")]:
        key = keys.authenticate(f"Bearer {secret}")
        assert key is not None
        assert key.role == role


def test_keys_of_files(tmp_path: Path) -> None:
    user, admin = tmp_path / "user", tmp_path / "admin"
    user.write_text("# ours\n\n  sk-a  \nsk-b\n")
    admin.write_text("sk-c")
    keys = keys_from({}, user, admin)
    roles = [keys.authenticate(f"Bearer sk-{name}") for name in "abc"]
    assert [key.role for key in roles if key] == ["user", "user", "admin"]
    with pytest.raises(UnknownKey):
        keys.authenticate("Bearer # ours")


def test_no_keys_at_all() -> None:
    assert not keys_from({}, None, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "holds no key"),
        (b"# none\n", "holds no key"),
        (b"sk-\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_key_file_that_is_no_use(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        keys_from({}, path, None)
