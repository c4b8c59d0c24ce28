"""The stored keys: made, listed, rotated and revoked. Of a secret only hash and prefix are kept."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, func, select

from tenuto.access.database import change, transaction
from tenuto.access.keys import Key, Limits, digest_of
from tenuto.access.new_key import NewKey
from tenuto.access.schema import changes, keys
from tenuto.errors import BadRequest, NotFound, quoted

State = Literal["active", "expired", "revoked"]
MARK = "sk-tn-"
SECRET_BYTES = 32
PREFIX_LENGTH = 12


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as its owner sees it. `prefix` is the beginning of its secret, times are seconds since
    1970."""

    key: Key
    prefix: str
    note: str
    created_at: float
    revoked_at: float | None

    @property
    def state(self) -> State:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.key.is_expired else "active"


class KeyStore:
    """Every method is one transaction, and every change tells the other processes.

    Errors: `Unavailable` for a database that does not answer; `NotFound` for a `name` that is
    neither an id nor the beginning of one key's secret.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create(self, wanted: NewKey) -> tuple[StoredKey, str]:
        """The key and its secret, which nobody can read again."""
        secret = _new_secret()
        values = {
            "id": f"k-{secrets.token_hex(4)}",
            **_of_secret(secret),
            "created_at": time.time(),
            "revoked_at": None,
            **wanted.model_dump(),
        }
        with transaction(self.engine) as connection:
            connection.execute(keys.insert().values(values))
            change(connection)
        return _stored(values), secret

    def rows(self) -> list[StoredKey]:
        """All of them, the oldest first."""
        with transaction(self.engine) as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))
            return [_stored(dict(row)) for row in rows.mappings()]

    def find(self, name: str) -> StoredKey:
        with transaction(self.engine) as connection:
            rows = connection.execute(select(keys).where(_is_named(name)))
            found = rows.mappings().all()
        if len(found) != 1:
            problem = "several keys begin with" if found else "there is no key"
            raise NotFound(f"{problem} {quoted(_harmless(name))!r}", param="key")
        return _stored(dict(found[0]))

    def revoke(self, name: str) -> StoredKey:
        """A revoked key stays revoked since the first time."""
        stored = self.find(name)
        self._change_valid(stored, {"revoked_at": time.time()})
        return self.find(stored.key.id)

    def rotate(self, name: str) -> tuple[StoredKey, str]:
        """The same key with a new secret. Errors: `BadRequest` for one that is not active, or that
        somebody else has rotated meanwhile: of two secrets only one can be valid."""
        stored, secret = self.find(name), _new_secret()
        new = _of_secret(secret)
        if stored.key.is_expired or not self._change_valid(stored, new, same_secret=True):
            raise self._not_rotated(self.find(stored.key.id))
        # Not read again: that may fail, and nobody would have the secret.
        return replace(
            stored, key=replace(stored.key, digest=new["digest"]), prefix=new["prefix"]
        ), secret

    def _not_rotated(self, stored: StoredKey) -> BadRequest:
        problem = f"{stored.key.id} is {stored.state}; only an active key can be rotated."
        if stored.state == "active":
            problem = f"{stored.key.id} was rotated by somebody else just now; that secret counts."
        return BadRequest(problem, param="key")

    def valid_keys(self) -> list[Key]:
        """Those that are not revoked; each knows by itself when it has expired."""
        return [stored.key for stored in self.rows() if stored.revoked_at is None]

    def has_any(self) -> bool:
        """Also when all of them are revoked."""
        with transaction(self.engine) as connection:
            return connection.execute(select(keys.c.id).limit(1)).first() is not None

    def change_number(self) -> int:
        with transaction(self.engine) as connection:
            number: int = connection.execute(select(changes.c.number)).scalar_one()
            return number

    def _change_valid(
        self, stored: StoredKey, values: dict[str, Any], *, same_secret: bool = False
    ) -> bool:
        """False when somebody has revoked it, or given it another secret."""
        is_valid = (keys.c.id == stored.key.id) & keys.c.revoked_at.is_(None)
        if same_secret:
            is_valid &= keys.c.digest == stored.key.digest
        with transaction(self.engine) as connection:
            changed = connection.execute(keys.update().where(is_valid).values(values)).rowcount
            if changed:
                change(connection)
        return bool(changed)


def _new_secret() -> str:
    return MARK + secrets.token_urlsafe(SECRET_BYTES)


def _of_secret(secret: str) -> dict[str, Any]:
    return {"prefix": secret[:PREFIX_LENGTH], "digest": digest_of(secret)}


def _is_named(name: str) -> ColumnElement[bool]:
    beginning = _harmless(name)
    if beginning.startswith(MARK) and beginning != MARK:
        # Not LIKE, for which SQLite's letters have no case.
        return func.substr(keys.c.prefix, 1, len(beginning)) == beginning
    return keys.c.id == name


def _harmless(name: str) -> str:
    """A whole secret counts by its prefix, and is not repeated."""
    return name[:PREFIX_LENGTH] if name.startswith(MARK) else name


def _stored(row: Mapping[str, Any]) -> StoredKey:
    key = Key(
        id=row["id"],
        digest=row["digest"],
        role=row["role"],
        models=None if row["models"] is None else tuple(row["models"]),
        limits=Limits(**{field.name: row[field.name] for field in fields(Limits)}),
        expires_at=row["expires_at"],
        first_priority=row["first_priority"],
        last_priority=row["last_priority"],
    )
    return StoredKey(key, row["prefix"], row["note"], row["created_at"], row["revoked_at"])
