"""API keys: whose request it is, and what its owner allows. Held as hashes, found in memory."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from tenuto.errors import AuthError, BadRequest, ConfigError, UnknownKey

Role = Literal["user", "admin"]
FAILED = "Authentication Error, "


@dataclass(frozen=True, slots=True)
class Limits:
    """None does not limit. Tokens are those of prompt and completion; months are UTC's."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel_requests: int | None = None
    tokens_per_month: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Key:
    """`id` names it in usage and in queues, and tells nothing of the secret. `models` are globs of
    model ids; None allows all. Of a request's priority the lower number goes first, as in vLLM:
    its key bounds it by `first_priority` and `last_priority`."""

    id: str
    digest: bytes
    role: Role = "user"
    models: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    expires_at: float | None = None
    first_priority: int = 0
    last_priority: int = 0

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()

    def allows(self, model_id: str) -> bool:
        return self.models is None or any(fnmatchcase(model_id, glob) for glob in self.models)


def priority_of(key: Key | None, asked: int | None) -> int:
    """What a request gets that asked for this priority, within the range of its key.

    Errors: `BadRequest` when its key leaves no choice.
    """
    first, last = (key.first_priority, key.last_priority) if key is not None else (0, 0)
    if asked and first == last:
        raise BadRequest(
            "priority must be left out: this key has no right to it.", param="priority"
        )
    return min(max(asked or 0, first), last)


class Keys:
    """The keys of this server: fixed ones of its start, and stored ones that come and go.

    Without any of either, every request is let in; `has_stored` keeps a server closed whose last
    stored key was revoked.
    """

    def __init__(self, user: Iterable[str] = (), admin: Iterable[str] = ()) -> None:
        fixed = [_fixed(secret, "user") for secret in user]
        fixed += [_fixed(secret, "admin") for secret in admin]
        self._fixed: Mapping[bytes, Key] = {key.digest: key for key in fixed}
        self._known = self._fixed
        self.has_stored = False

    def __bool__(self) -> bool:
        return bool(self._known) or self.has_stored

    def adopt(self, stored: Iterable[Key], *, has_stored: bool) -> None:
        """These are the stored keys that are valid from now on."""
        self._known = {**{key.digest: key for key in stored}, **self._fixed}
        self.has_stored = has_stored

    def authenticate(self, authorization: str | None) -> Key | None:
        """The key of an `Authorization` header, None when the server is open.

        Errors: `AuthError`, `UnknownKey`, worded as LiteLLM words them.
        """
        if not self:
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
        # Nobody can steer a hash towards one that is here, so the time of the search tells nothing.
        key = self._known.get(digest_of(secret))
        if key is None:
            raise UnknownKey(f"{FAILED}Invalid API key passed in.", param="key")
        if key.is_expired:
            raise UnknownKey(f"{FAILED}Expired API key passed in.", param="key")
        return key


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


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _fixed(secret: str, role: Role) -> Key:
    digest = digest_of(secret)
    return Key(id=f"fixed-{digest.hex()[:8]}", digest=digest, role=role)


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
