"""Differences that are understood, and what of each is to be thought of."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tenuto.conformance.cases import CaseError, Level, data, sources
from tenuto.conformance.differing import Difference
from tenuto.conformance.exchange import Request

SideName = Literal["A", "B"]
Kind = Literal["new", "breaks", "expected", "known"]
KINDS: tuple[Kind, ...] = ("new", "breaks", "expected", "known")
# Of a sentence that no case stands for, its origin says how much weight it has.
LEVELS: dict[str, Level] = {
    "hosted": "documented",
    "openai": "contract",
    "standard": "contract",
    "observed": "observed",
}
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Verdict:
    """What a difference is. `why` says so of one that is known or expected; `level`, `source` and
    `side` of one by which a side breaks what is required."""

    kind: Kind
    why: str = ""
    level: Level | None = None
    source: str | None = None
    side: SideName | None = None

    @property
    def is_accepted(self) -> bool:
        """B, the side that is looked at, breaks no must, and does nothing that nobody knows of."""
        is_blamed = self.side == "B" and self.level != "observed"
        return self.kind != "new" and not (self.kind == "breaks" and is_blamed)


class Quirk(BaseModel):
    """A row of quirks.yaml. `broken_by` is the value by which a side breaks the sentence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: tuple[str, ...] = Field(min_length=1)
    aspects: tuple[str, ...] = Field(min_length=1)
    values: tuple[str, str]
    why: str
    breaks: str | None = None
    broken_by: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Quirk":
        if self.breaks is None and self.broken_by is None:
            return self
        if self.breaks not in sources():
            raise ValueError(f"sources.yaml has no {self.breaks!r}")
        if self.broken_by not in self.values:
            raise ValueError(f"broken_by is none of the values: {self.broken_by!r}")
        return self

    def is_of(self, name: str, request: Request) -> bool:
        return any(
            fnmatch.fnmatchcase(known_as, glob)
            for known_as in (name, way_of(request))
            for glob in self.requests
        )

    def explains(self, difference: Difference) -> bool:
        found = (difference.a, difference.b)
        return difference.aspect in self.aspects and found in (self.values, self.values[::-1])

    def verdict(self, difference: Difference) -> Verdict:
        if self.breaks is None:
            return Verdict("known", self.why)
        side: SideName = "A" if difference.a == self.broken_by else "B"
        level = LEVELS[self.breaks.partition("/")[0]]
        return Verdict("breaks", self.why, level, self.breaks, side)


class Expected(BaseModel):
    """A row of a baseline; `request` is a glob of names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: str
    aspect: str
    why: str

    def is_of(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.request)


@cache
def all_quirks() -> tuple[Quirk, ...]:
    """Errors: `CaseError`."""
    return tuple(_row("quirks.yaml", Quirk, row) for row in data("quirks.yaml"))


def quirk_of(
    name: str, request: Request, difference: Difference, quirks: Iterable[Quirk]
) -> Quirk | None:
    return next((q for q in quirks if q.is_of(name, request) and q.explains(difference)), None)


def load_expected(path: Path) -> tuple[Expected, ...]:
    """The baseline of a comparison. Errors: `CaseError`."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CaseError(f"cannot read the baseline {path}: {error}") from None
    if not isinstance(rows, list):
        raise CaseError(f"{path}: a baseline of a comparison is a list")
    return tuple(_row(str(path), Expected, row) for row in rows)


def way_of(request: Request) -> str:
    """How a request asks: `chat-stream` and the like; nothing for the other routes."""
    if not request.path.endswith("/completions"):
        return ""
    way = "chat" if request.path.endswith("/chat/completions") else "completions"
    is_stream = isinstance(request.body, dict) and request.body.get("stream") is True
    return f"{way}-stream" if is_stream else way


def _row(file: str, model: type[M], row: Any) -> M:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "a row"
        raise CaseError(f"{file}: {where}: {fault['msg']}: {row}") from None
