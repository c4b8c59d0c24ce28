"""What an owner may ask of a new key, from the command line and over HTTP."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

DURATION = re.compile(r"([0-9]{1,9})([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# What the columns hold, and what JSON carries without loss.
MAX_COUNT = 2**31 - 1
MAX_MONTHLY = 2**53 - 1
MAX_PRIORITY = 100


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("line", "should be one line of printable characters")
    return text


def _expiry(value: object) -> float:
    """Seconds since 1970 of `30d`, `2027-01-31` or `2027-01-31T12:00+01:00`."""
    try:
        at = _moment(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        at = None
    if at is None:
        raise PydanticCustomError(
            "expiry", "should be a duration such as 30d or 12h, or a date such as 2027-01-31"
        )
    if at <= datetime.now(UTC):
        raise PydanticCustomError("expiry", "should be in the future")
    return at.timestamp()


def _moment(text: str) -> datetime:
    """A time without a zone is UTC's. Errors: `ValueError`, `OverflowError`."""
    duration = DURATION.fullmatch(text)
    if duration:
        return datetime.now(UTC) + timedelta(**{UNITS[duration[2]]: int(duration[1])})
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)


Line = Annotated[str, Field(max_length=256), AfterValidator(_one_line)]
Glob = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_one_line)]
Expiry = Annotated[float, BeforeValidator(_expiry), WithJsonSchema({"type": "string"})]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class NewKey(BaseModel):
    """What is left out does not limit. The names are those of the table's columns."""

    model_config = ConfigDict(extra="forbid", strict=True)

    note: Line = Field("", description="Whose it is, for its owner.")
    role: Literal["user", "admin"] = Field("user", description="admin: also opens /admin/.")
    models: list[Glob] | None = Field(
        None, min_length=1, max_length=256, description="Globs of the model ids that it may use."
    )
    requests_per_minute: Count | None = Field(None, description="Requests in any 60 s.")
    tokens_per_minute: Count | None = Field(None, description="Of prompt and answer, in any 60 s.")
    parallel_requests: Count | None = Field(None, description="Requests at the same time.")
    tokens_per_month: Annotated[int, Field(ge=1, le=MAX_MONTHLY)] | None = Field(
        None, description="Of prompt and answer, in a month of UTC's."
    )
    expires_at: Expiry | None = Field(
        None,
        description="A duration (m, h, d, w) such as 30d, or an ISO date or time; UTC without "
        "a zone.",
    )
    first_priority: Priority = Field(0, description="The best that a request may ask for.")
    last_priority: Priority = Field(
        0, validate_default=True, description="The worst; lower numbers go first."
    )

    @field_validator("last_priority")
    @classmethod
    def _in_order(cls, last: int, info: ValidationInfo) -> int:
        if last < info.data.get("first_priority", last):
            raise PydanticCustomError("order", "should not be lower than first_priority")
        return last
