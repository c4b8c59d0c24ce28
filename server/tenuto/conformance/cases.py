"""The cases as the YAML files say them, each spread over the ways to ask that it names."""

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Level = Literal["documented", "contract", "observed"]
Way = Literal["chat", "chat-stream", "completions", "completions-stream"]
Need = Literal["rejecting_model", "running_metric", "key", "context", "limited_key", "low_limit"]
LEVELS: tuple[Level, ...] = ("documented", "contract", "observed")


class CaseError(Exception):
    """The kit's own data are wrong."""


class _Row(BaseModel):
    """One case of a file. `id` never changes; with `on` it is one case for each way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9_/.-]+$")
    on: tuple[Way, ...] = ()
    level: Level
    source: str
    requires: str
    needs: tuple[Need, ...] = ()
    alone: bool = False
    send: dict[str, dict[str, Any]] = Field(min_length=1)
    check: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Case:
    """`send` names the requests in their order; `check` holds what must be true of the answers.

    `group` is the part of the id before the slash: the way, or what the case is about. A case
    that is `alone` runs while no other does.
    """

    id: str
    way: Way | None
    level: Level
    source: str
    quote: str
    requires: str
    needs: tuple[Need, ...]
    alone: bool
    send: dict[str, dict[str, Any]]
    check: list[dict[str, Any]]

    @property
    def group(self) -> str:
        return self.id.partition("/")[0]

    @property
    def asks(self) -> set[str]:
        """The prompts, `name/endpoint`, that the model must have for this case."""
        endpoint = (self.way or "").removesuffix("-stream")
        names = {spec["ask"] for spec in self.send.values() if "ask" in spec}
        return {f"{name}/{endpoint}" for name in names} if self.way else set()

    @property
    def is_must(self) -> bool:
        return self.level != "observed"


def data(name: str) -> Any:
    """One of the kit's YAML files, parsed."""
    return yaml.load(files(__package__).joinpath(name).read_text(encoding="utf-8"), _Loader)


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case of the kit, in the order of the files. Errors: `CaseError`."""
    names = sorted(f.name for f in files(__package__).joinpath("cases").iterdir())
    cases = tuple(
        case
        for name in names
        if name.endswith(".yaml")
        for row in data(f"cases/{name}")
        for case in _spread(_parsed(name, row))
    )
    ids = [case.id for case in cases]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise CaseError(f"two cases have one id: {', '.join(twice)}")
    return cases


@cache
def sources() -> dict[str, str]:
    """What the cases rest on: sentences by `origin/name`."""
    return {
        f"{origin}/{name}": sentence
        for origin, sentences in data("sources.yaml").items()
        for name, sentence in sentences.items()
    }


def selected(cases: Iterable[Case], only: Iterable[str]) -> list[Case]:
    """Those whose id, group, level or source one of the glob patterns meets; all without any."""
    globs = list(only)
    return [case for case in cases if not globs or any(_meets(case, glob) for glob in globs)]


def _meets(case: Case, glob: str) -> bool:
    names = (case.id, case.group, case.level, case.source)
    return any(fnmatch.fnmatchcase(name, glob) for name in names)


def _parsed(file: str, row: Any) -> _Row:
    try:
        parsed = _Row.model_validate(row)
    except ValidationError as error:
        name = row.get("id", row) if isinstance(row, dict) else row
        raise CaseError(f"{file}: {name}: {error}") from None
    if parsed.source not in sources():
        raise CaseError(f"{file}: {parsed.id}: sources.yaml has no {parsed.source!r}")
    return parsed


def _spread(row: _Row) -> Iterator[Case]:
    for way in row.on or (None,):
        yield Case(
            id=f"{way}/{row.id}" if way else row.id,
            way=way,
            quote=sources()[row.source],
            send=_repeated(row.send),
            **row.model_dump(include=_SHARED),
        )


def _repeated(send: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A request that is to be sent N times is N requests: `name1` and so on."""
    repeated = {}
    for name, spec in send.items():
        times = spec.get("http", {}).get("times")
        names = [f"{name}{number}" for number in range(1, times + 1)] if times else [name]
        repeated.update(dict.fromkeys(names, spec))
    return repeated


_SHARED = {"level", "source", "requires", "needs", "alone", "check"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: `on` is a key of the cases, not true."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
