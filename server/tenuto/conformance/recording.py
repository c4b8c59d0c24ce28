"""Exchanges in a directory of JSON files: made through any sender, and a sender themselves."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tenuto.conformance.building import filled, requests_of
from tenuto.conformance.cases import Case, CaseError
from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.facts import Facts
from tenuto.conformance.run import NotRecorded, Sender
from tenuto.conformance.scrubbing import everywhere, kept_headers, scrubbed, scrubber, without_keys

ABOUT = "recording.json"
BUNDLED = Path(__file__).parent / "recordings"
MAX_FILE_NAME = 120
M = TypeVar("M", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Model):
    """`origin` says what server it was; without `facts` the cases cannot be built again."""

    kit_version: str
    origin: str
    recorded_at: AwareDatetime
    model: str
    facts: Facts | None = None


class _Answer(_Model):
    """`body` is parsed JSON, `text` anything else."""

    status: int | None
    headers: dict[str, str] = Field(default_factory=dict)
    body: Any = None
    text: str | None = None
    failure: str | None = None
    left: bool = False
    untried: bool = False
    connection: int = 0
    elapsed_s: float = 0.0
    first_s: float | None = None

    def exchange(self, request: Request) -> Exchange:
        text = self.text
        if text is None:
            text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))
        return Exchange(
            request,
            self.status,
            dict(self.headers),
            text,
            self.failure,
            elapsed_s=self.elapsed_s,
            connection=self.connection,
            left=self.left,
            untried=self.untried,
            first_s=self.first_s,
        )


class _Entry(_Model):
    name: str = Field(min_length=1)
    request: Request
    answers: list[_Answer] = Field(min_length=1)


@dataclass
class _Recorded:
    """`given` counts the answers that were handed out."""

    request: Request
    answers: list[_Answer]
    given: int = 0

    def next(self, request: Request) -> Exchange:
        answer = self.answers[min(self.given, len(self.answers) - 1)]
        self.given += 1
        return answer.exchange(request)


@dataclass
class Recording:
    """A sender that answers as the server did."""

    directory: Path
    about: About
    entries: Mapping[str, _Recorded]
    _by_identity: dict[str, _Recorded] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_identity = {identity(entry.request): entry for entry in self.entries.values()}

    @classmethod
    def open(cls, directory: Path) -> "Recording":
        """Errors: `CaseError` when it is no recording, or a file of it is broken."""
        about = _read(directory / ABOUT, About)
        entries: dict[str, _Recorded] = {}
        seen: dict[str, str] = {}
        for path in sorted(directory.glob("*.json")):
            if path.name == ABOUT:
                continue
            entry = _read(path, _Entry)
            request = _expanded(entry.request, about.model)
            other = seen.setdefault(identity(request), path.name)
            if other != path.name or entry.name in entries:
                raise CaseError(f"{path}: {other} has the same request, or another file its name")
            entries[entry.name] = _Recorded(request, entry.answers)
        return cls(directory, about, entries)

    @property
    def is_of_cases(self) -> bool:
        """Made by `record`, so that the cases can be built again; else it has its own requests."""
        return self.about.facts is not None

    @property
    def facts(self) -> Facts:
        return self.about.facts or Facts(model=self.about.model)

    @property
    def requests(self) -> dict[str, Request]:
        return {name: entry.request for name, entry in self.entries.items()}

    def first(self, name: str) -> Exchange:
        """A named request with its first answer, which stays to be given out."""
        entry = self.entries[name]
        return entry.answers[0].exchange(entry.request)

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        """The next answer to an equal request. Errors: `NotRecorded`."""
        entry = self._by_identity.get(identity(request))
        if entry is None:
            raise NotRecorded(f"{self.about.origin}: no such {request.method} {request.path}")
        return entry.next(request)

    @asynccontextmanager
    async def one_connection(self) -> AsyncIterator["Recording"]:
        yield self


@dataclass
class Recorder:
    """Hands requests on to a sender and keeps what it answers, until `save`. `key` is what must
    not be written, wherever a server repeats it. Errors: `CaseError` when the directory is taken.
    """

    sender: Sender
    directory: Path
    origin: str
    kit_version: str
    key: str | None = field(default=None, repr=False)
    kept: dict[str, list[Exchange]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_free(self.directory)

    async def send(self, request: Request, leave: asyncio.Event | None = None) -> Exchange:
        # Kept in the order of the requests, whichever is answered first.
        kept = Exchange(request, failure="no answer was waited for")
        self.kept.setdefault(identity(request), []).append(kept)
        exchange = await self.sender.send(request, leave)
        for name in _SHARED:
            setattr(kept, name, getattr(exchange, name))
        return exchange

    @asynccontextmanager
    async def one_connection(self) -> AsyncIterator["Recorder"]:
        async with self.sender.one_connection() as sender:
            yield replace(self, sender=sender)

    def save(self, facts: Facts, cases: Iterable[Case] = ()) -> Path:
        """All or nothing. Requests of the cases are named after them, the others after themselves.

        Errors: `CaseError` when the directory is taken.
        """
        directory = self.directory.resolve()
        require_free(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        new = directory.with_name(f".{directory.name}.{os.getpid()}.new")
        new.mkdir()
        try:
            self._write(new, facts, case_names(cases, facts))
            _put(new, directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return directory

    def _write(self, directory: Path, facts: Facts, names: Mapping[str, str]) -> None:
        about = About(
            kit_version=self.kit_version,
            origin=without_keys(self.origin, self.key),
            recorded_at=datetime.now(UTC).replace(microsecond=0),
            model=facts.model,
            facts=facts,
        )
        _dump(directory / ABOUT, about.model_dump(mode="json"))
        used = {ABOUT.removesuffix(".json")}
        names_used: set[str] = set()
        for id, exchanges in self.kept.items():
            request = exchanges[0].request
            name = _distinct(names.get(id, f"{request.method} {request.path}"), names_used)
            answers = [answer_of(exchange, self.key) for exchange in exchanges]
            entry = {"name": name, "request": _said(request), "answers": answers}
            _dump(directory / f"{_distinct(_file_name(name), used)}.json", entry)


def identity(request: Request) -> str:
    """Equal for requests that a server cannot tell apart; what is waited for does count."""
    headers = sorted((name.lower(), value) for name, value in request.headers.items())
    parts = [request.method, request.path, request.body, request.raw, request.auth, headers]
    return json.dumps([*parts, request.until], sort_keys=True)


def case_names(cases: Iterable[Case], facts: Facts) -> dict[str, str]:
    """`case:request` by the identity of the request; the first case that sends it names it."""
    names: dict[str, str] = {}
    for case in cases:
        if all(map(facts.has, case.needs)):
            for name, request in requests_of(case, facts).items():
                names.setdefault(identity(request), f"{case.id}:{name}")
    return names


def answer_of(exchange: Exchange, key: str | None) -> dict[str, Any]:
    """What is written of one answer."""
    answer: dict[str, Any] = {
        "status": exchange.status,
        "headers": kept_headers(exchange.headers, key),
        **everywhere(_content(exchange.text), scrubber(exchange, key)),
    }
    if exchange.failure is not None:
        answer["failure"] = scrubbed(exchange.failure, key)
    names = ["left", "untried", "connection"]
    if exchange.is_stream and exchange.first_s is not None:
        names += ["elapsed_s", "first_s"]
    flags = {name: getattr(exchange, name) for name in names}
    return answer | {name: value for name, value in flags.items() if value}


def _content(text: str) -> dict[str, Any]:
    """As JSON only what can be written as JSON again."""
    try:
        body = json.loads(text)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {"text": text}
    return {"body": body}


def _said(request: Request) -> dict[str, Any]:
    """Without what is as always."""
    usual = asdict(Request("", ""))
    return {name: value for name, value in asdict(request).items() if value != usual[name]}


def _expanded(request: Request, model: str) -> Request:
    """Long prompts may be written as the cases write them."""
    return replace(request, body=filled(request.body, Facts(model=model)))


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:MAX_FILE_NAME] or "request"


def _distinct(name: str, used: set[str]) -> str:
    """Some file systems do not tell capitals apart."""
    number, distinct = 1, name
    while distinct.casefold() in used:
        number += 1
        distinct = f"{name}-{number}"
    used.add(distinct.casefold())
    return distinct


def require_free(directory: Path) -> None:
    """A recording may be replaced; nothing else is deleted."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CaseError(f"{directory} is no directory")
    found = {path.name for path in directory.iterdir()}
    is_recording = ABOUT in found and all(name.endswith(".json") for name in found)
    if found and not is_recording:
        raise CaseError(f"{directory} is not empty, and no recording")


def _put(new: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        reason = _brief(error) if isinstance(error, ValidationError) else error
        raise CaseError(f"{path}: {reason}") from None


def _brief(error: ValidationError) -> str:
    fault = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


_SHARED = [f.name for f in fields(Exchange) if f.name != "request"]
