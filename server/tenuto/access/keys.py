"""API keys: held as hashes, compared in constant time."""

import hashlib
import hmac
import os
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenuto.errors import AuthError, ConfigError, UnknownKey

Role = Literal["user", "admin"]
FAILED = "Authentication Error, "


@dataclass(frozen=True, slots=True)
class Key:
    digest: bytes
    role: Role


class Keys:
    """The keys of this server. Without any, every request is let in."""

    def __init__(self, user: Iterable[str] = (), admin: Iterable[str] = ()) -> None:
        self._keys = [Key(_digest(secret), "user") for secret in user]
        self._keys += [Key(_digest(secret), "admin") for secret in admin]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def authenticate(self, authorization: str | None) -> Key | None:
        """The key of an `Authorization` header, None when the server is open.

        Errors: `AuthError`, `UnknownKey`, worded as LiteLLM words them.
        """
        if not self._keys:
            return None
        if not authorization:
            raise AuthError(f"{FAILED}No api key passed in.", param="None")
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise AuthError(
                f"{FAILED}Malformed API Key passed in. Ensure Key has `Bearer ` prefix.",
                param="None",
            )
        return self._find(secret.strip())

    def _find(self, secret: str) -> Key:
        given = _digest(secret)
        found = None
        # All keys are compared, so that the time tells nothing about which one was near.
        for key in self._keys:
            if hmac.compare_digest(key.digest, given):
                found = key
        if found is None:
            raise UnknownKey(f"{FAILED}Invalid API key passed in.", param="key")
        return found


def keys_from(
    environment: MutableMapping[str, str], key_file: Path | None, admin_key_file: Path | None
) -> Keys:
    """Takes the keys out of the environment, so that no engine process inherits them.

    Errors: `ConfigError` for a file that cannot be read or holds no key.
    """
    return Keys(
        user=[*_split(environment.pop("TENUTO_API_KEYS", "")), *_read(key_file)],
        admin=[*_split(environment.pop("TENUTO_ADMIN_KEYS", "")), *_read(admin_key_file)],
    )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _split(text: str) -> list[str]:
    return [key.strip() for key in text.split(",") if key.strip()]


def _read(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(f"key file {path}: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"key file {path}: is not UTF-8 text") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"key file {path}: holds no key")
    return keys
