"""The tables of the state database. They change by a migration alone (`migrations/versions`)."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData()
# SQLite numbers rows by itself for its own integer type alone.
Number = BigInteger().with_variant(Integer, "sqlite")

# Times are seconds since 1970. A limit that is null does not limit; `models` are globs, null: all.
keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("prefix", String(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("role", String(8), nullable=False),
    Column("note", String(256), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("models", JSON(none_as_null=True)),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("parallel_requests", Integer),
    Column("tokens_per_month", BigInteger),
    Column("first_priority", Integer, nullable=False),
    Column("last_priority", Integer, nullable=False),
)

# One row, whose number grows with every change of the keys: what other processes look at.
changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# One row for each request; never a prompt nor an answer. `generated_tokens` are those of all
# candidates, `completion_tokens` those that were returned.
usage = Table(
    "usage",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("model", String(256), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("generated_tokens", Integer, nullable=False),
    Column("first_token_s", Float),
    Column("duration_s", Float, nullable=False),
    Column("finish", String(16)),
    Index("usage_at", "at"),
)

# The same summed up, so that a question about months reads few rows. `day` is UTC, as 2026-01-31.
usage_by_day = Table(
    "usage_by_day",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("duration_s", Float, nullable=False),
)
