"""Stored keys: what is made of a wish, what is kept of a secret, and what ends a key."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tenuto.access.key_store import PREFIX_LENGTH, KeyStore
from tenuto.access.keys import Key, Keys, Limits
from tenuto.access.new_key import NewKey
from tenuto.errors import BadRequest, NotFound, Unavailable, UnknownKey
from tenuto.wire.parse import parse
from tests.access.conftest import NewUrl
from tests.access.stores import opened

ALL: dict[str, Any] = {
    "note": "for Ada",
    "role": "admin",
    "models": ["demo", "Sao10K-*"],
    "requests_per_minute": 1,
    "tokens_per_minute": 2**31 - 1,
    "parallel_requests": 3,
    "tokens_per_month": 2**53 - 1,
    "expires_at": "2999-01-31",
    "first_priority": -100,
    "last_priority": 100,
}


@pytest.fixture
def store(tmp_path: Path, new_url: NewUrl) -> Iterator[KeyStore]:
    with opened(tmp_path / "state", new_url()) as store:
        yield store


def wanted(**fields: Any) -> NewKey:
    return parse(NewKey, fields, "keys")


def authenticate(store: KeyStore, secret: str) -> Key | None:
    keys = Keys()
    keys.adopt(store.valid_keys(), has_stored=store.has_any())
    return keys.authenticate(f"Bearer {secret}")


def test_a_secret(store: KeyStore) -> None:
    made = [store.create(wanted()) for _ in range(20)]
    for stored, secret in made:
        assert secret.startswith("sk-tn-")
        assert len(secret) == 49
        assert stored.prefix == secret[:PREFIX_LENGTH]
        assert stored.key.id.startswith("k-")
        assert len(stored.key.id) == 10
    assert len({secret for _, secret in made}) == 20


def test_everything_that_is_wished_is_stored(store: KeyStore) -> None:
    before = time.time()
    stored, secret = store.create(wanted(**ALL))
    key = stored.key
    assert stored == store.find(key.id)
    assert before <= stored.created_at <= time.time()
    assert (stored.note, stored.state, stored.revoked_at) == ("for Ada", "active", None)
    assert key.limits == Limits(1, 2**31 - 1, 3, 2**53 - 1)
    assert (key.role, key.models) == ("admin", ("demo", "Sao10K-*"))
    assert (key.first_priority, key.last_priority) == (-100, 100)
    assert key.expires_at == datetime(2999, 1, 31, tzinfo=UTC).timestamp()
    assert authenticate(store, secret) == key


def test_what_is_left_out_does_not_limit(store: KeyStore) -> None:
    key = store.create(wanted())[0].key
    assert (key.role, key.models, key.limits, key.expires_at) == ("user", None, Limits(), None)
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT models IS NULL FROM keys")).scalar()


def test_the_secret_is_nowhere_in_the_state_directory(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        secret = store.create(wanted(note="for Ada"))[1]
        contents = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"for Ada" in contents
    assert secret[:PREFIX_LENGTH].encode() in contents
    assert secret[PREFIX_LENGTH:].encode() not in contents


def test_revoked_keys_are_listed_and_refused(store: KeyStore) -> None:
    (first, secret), (second, _) = store.create(wanted()), store.create(wanted())
    revoked = store.revoke(first.key.id)
    assert revoked.state == "revoked"
    assert [stored.state for stored in store.rows()] == ["revoked", "active"]
    assert store.valid_keys() == [second.key]
    with pytest.raises(UnknownKey, match="Invalid"):
        authenticate(store, secret)


def test_a_key_is_revoked_once(store: KeyStore) -> None:
    key_id = store.create(wanted())[0].key.id
    revoked = store.revoke(key_id)
    number = store.change_number()
    assert store.revoke(key_id) == revoked
    assert store.change_number() == number


def test_a_rotated_key_keeps_all_but_its_secret(store: KeyStore) -> None:
    old, old_secret = store.create(wanted(**ALL))
    new, new_secret = store.rotate(old.key.id)
    assert new_secret != old_secret
    assert (new.key.id, new.key.limits, new.note) == (old.key.id, old.key.limits, old.note)
    assert new.created_at == old.created_at
    assert authenticate(store, new_secret) == new.key
    with pytest.raises(UnknownKey):
        authenticate(store, old_secret)


def test_of_two_who_rotate_at_once_one_is_told(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found the old secret; then both would be given a new one."""
    old = store.create(wanted())[0]
    won, secret = store.rotate(old.key.id)
    assert won == store.find(old.key.id)
    number = store.change_number()
    found = [old, won]
    with monkeypatch.context() as patched:
        patched.setattr(store, "find", lambda name: found.pop(0))
        with pytest.raises(BadRequest, match=f"{old.key.id} was rotated by somebody else"):
            store.rotate(old.key.id)
    assert store.change_number() == number
    assert authenticate(store, secret) == won.key


@pytest.mark.parametrize("state", ["revoked", "expired"])
def test_what_is_not_active_cannot_be_rotated(store: KeyStore, state: str) -> None:
    key_id = store.create(wanted())[0].key.id
    if state == "revoked":
        store.revoke(key_id)
    else:
        expire(store)
    before = store.find(key_id)
    with pytest.raises(BadRequest, match=f"{key_id} is {state}"):
        store.rotate(key_id)
    assert store.find(key_id) == before


def expire(store: KeyStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE keys SET expires_at = 1"))


def test_expired_keys_are_refused(store: KeyStore) -> None:
    secret = store.create(wanted(expires_at="1m"))[1]
    assert authenticate(store, secret) is not None
    expire(store)
    assert store.rows()[0].state == "expired"
    with pytest.raises(UnknownKey, match="Expired"):
        authenticate(store, secret)


def test_names_of_a_key(store: KeyStore) -> None:
    stored, secret = store.create(wanted())
    store.create(wanted())
    for name in (stored.key.id, stored.prefix, secret[: PREFIX_LENGTH - 1], secret):
        assert store.find(name).key.id == stored.key.id


@pytest.mark.parametrize("name", ["", "k-", "nope", "sk-tn-", "%", "x" * 500])
def test_names_of_no_key(store: KeyStore, name: str) -> None:
    store.create(wanted())
    with pytest.raises(NotFound, match="there is no key") as caught:
        store.revoke(name)
    assert len(caught.value.message) < 100


def test_a_beginning_of_several_secrets(store: KeyStore) -> None:
    prefixes = [store.create(wanted())[0].prefix for _ in range(2)]
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE keys SET prefix = 'sk-tn-Ab' || substr(prefix, 9)"))
    with pytest.raises(NotFound, match="several keys begin with 'sk-tn-A'"):
        store.find("sk-tn-A")
    with pytest.raises(NotFound, match="there is no key"):
        store.find("sk-tn-a")
    assert store.find(f"sk-tn-Ab{prefixes[0][8:]}").prefix.endswith(prefixes[0][8:])


def test_a_secret_is_not_repeated(store: KeyStore) -> None:
    secret = "sk-tn-" + "x" * 43
    with pytest.raises(NotFound) as caught:
        store.find(secret)
    assert secret[:13] not in caught.value.message


def test_every_change_is_counted_and_nothing_else(store: KeyStore) -> None:
    numbers = [store.change_number()]
    key_id = store.create(wanted())[0].key.id
    numbers.append(store.change_number())
    store.rotate(key_id)
    numbers.append(store.change_number())
    store.revoke(key_id)
    numbers.append(store.change_number())
    store.rows(), store.find(key_id), store.valid_keys()
    assert [*numbers, store.change_number()] == [0, 1, 2, 3, 3]


def test_any_keys(store: KeyStore) -> None:
    assert not store.has_any()
    store.revoke(store.create(wanted())[0].key.id)
    assert store.has_any()


def test_a_database_that_is_gone(store: KeyStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("DROP TABLE keys"))
    with pytest.raises(Unavailable, match=r"cannot be used: .*keys") as caught:
        store.create(wanted(note="secret note"))
    assert "secret note" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2999-01-31", "2999-01-31T00:00+00:00"),
        ("2999-01-31T12:30", "2999-01-31T12:30+00:00"),
        ("2999-01-31T12:30:00+02:00", "2999-01-31T10:30+00:00"),
        ("2999-01-31 12:30:00Z", "2999-01-31T12:30+00:00"),
    ],
)
def test_dates(text: str, expected: str) -> None:
    assert wanted(expires_at=text).expires_at == datetime.fromisoformat(expected).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)]
)
def test_durations(text: str, seconds: int) -> None:
    before = time.time()
    expires_at = wanted(expires_at=text).expires_at
    assert expires_at is not None
    assert before + seconds <= expires_at <= time.time() + seconds


FORM = "should be a duration such as 30d or 12h, or a date such as 2027-01-31"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("expires_at", "soon", FORM),
        ("expires_at", "30", FORM),
        ("expires_at", "-1d", FORM),
        ("expires_at", "999999999w", FORM),
        ("expires_at", "9999-12-31T23:59-23:00", FORM),
        ("expires_at", "0001-01-01T00:00+23:00", FORM),
        ("expires_at", 1_000_000, FORM),
        ("expires_at", "0h", "should be in the future"),
        ("expires_at", "2020-01-01", "should be in the future"),
        ("requests_per_minute", 0, "greater than or equal to 1"),
        ("requests_per_minute", 2**31, "less than or equal to"),
        ("tokens_per_minute", 1.5, "valid integer"),
        ("parallel_requests", True, "valid integer"),
        ("parallel_requests", "1", "valid integer"),
        ("tokens_per_month", 2**53, "less than or equal to"),
        ("models", [], "at least 1 item"),
        ("models", [""], "at least 1 character"),
        ("models", ["a\nb"], "one line of printable characters"),
        ("models", "demo", "valid list"),
        ("note", "x" * 257, "at most 256 characters"),
        ("note", "a\x1b[31m", "one line of printable characters"),
        ("note", "\ud800", "valid string"),
        ("role", "owner", "'user' or 'admin'"),
        ("first_priority", -101, "greater than or equal to -100"),
        ("last_priority", 101, "less than or equal to 100"),
        ("last_priority", -1, "should not be lower than first_priority"),
        ("colour", "red", "not permitted"),
    ],
)
def test_wishes_that_are_refused(field: str, value: object, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        wanted(**{field: value})
    assert caught.value.param == field
    assert complaint in caught.value.message


def test_the_default_of_the_last_priority_is_judged_too() -> None:
    with pytest.raises(BadRequest, match="last_priority should not be lower"):
        wanted(first_priority=1)
    assert wanted(first_priority=1, last_priority=1).last_priority == 1
