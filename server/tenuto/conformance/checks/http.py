"""Status, headers, error envelope and shape of an answer."""

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from jsonschema import Draft202012Validator

from tenuto.conformance.cases import data
from tenuto.conformance.checks.registry import across, each, require, require_equal, value_at
from tenuto.conformance.exchange import Broken, Exchange, Unsuitable, shortened
from tenuto.conformance.transport import running_requests


@each
def status(exchange: Exchange, wanted: Any) -> None:
    """One status, or a list of those allowed."""
    exchange.require_whole()
    allowed = wanted if isinstance(wanted, list) else [wanted]
    require(
        exchange.status in allowed,
        f"status {exchange.status} instead of {' or '.join(map(str, allowed))}: "
        f"{exchange.text[:300]}",
    )


@each
def header(exchange: Exchange, wanted: Mapping[str, str | None]) -> None:
    """Each header's value meets a regular expression; null: the header is absent."""
    exchange.require_whole()
    for name, pattern in wanted.items():
        value = exchange.headers.get(name)
        if pattern is None:
            require(value is None, f"header {name} is there: {value!r}")
        else:
            met = value is not None and re.search(pattern, value, re.I)
            require(bool(met), f"header {name} is {value!r}, which does not meet {pattern!r}")


@each
def schema(exchange: Exchange, name: str) -> None:
    """The whole answer, or each chunk of a stream, meets a schema of schemas.yaml."""
    for part in exchange.chunks if exchange.is_stream else [exchange.json]:
        _require_schema(part, name)


@each
def error(exchange: Exchange, wanted: Mapping[str, Any]) -> None:
    """The envelope with `status` (400 unless said), and whatever of its fields is named."""
    fields = {"status": 400, **wanted}
    status(exchange, fields.pop("status"))
    require_json(exchange)
    _require_schema(exchange.json, "error")
    found = exchange.json["error"]
    for name, value in fields.items():
        require_equal(f"the envelope's {name}", found[name], value)


@each
def message(exchange: Exchange, pattern: str) -> None:
    """The error's message meets a regular expression; the documentation's dash is typography."""
    text = str(value_at(exchange.json, "error.message")).replace("\N{EN DASH}", "-")
    met = re.search(pattern, text, re.S)
    require(bool(met), f"the message does not meet {pattern!r}: {shortened(text, 300)}")


@each
def lacks(exchange: Exchange, patterns: list[str]) -> None:
    """Nothing in the answer meets any of the regular expressions."""
    exchange.require_whole()
    for pattern in patterns:
        if found := re.search(pattern, exchange.text):
            raise Broken(f"the answer holds {found[0]!r}")


@each
def cors_is_usable(exchange: Exchange, wanted: bool) -> None:
    """No `*` together with credentials."""
    exchange.require_whole()
    origin = exchange.headers.get("access-control-allow-origin")
    credentials = exchange.headers.get("access-control-allow-credentials")
    require(
        not (origin == "*" and credentials == "true"),
        "access-control-allow-origin is * with access-control-allow-credentials: true",
    )


@each
def body(exchange: Exchange, wanted: Any) -> None:
    """The answer holds at least this: fields of objects, items of lists, equal values."""
    _require_within(exchange.json, wanted, "the answer")


@each
def unique_ids(exchange: Exchange, wanted: bool) -> None:
    """There are models, and each is listed once."""
    ids = [row["id"] for row in value_at(exchange.json, "data")]
    require(len(ids) > 0, "the list is empty")
    require(len(ids) == len(set(ids)), f"a model is listed twice: {shortened(ids)}")


@each
def running(exchange: Exchange, wanted: bool) -> None:
    """The server's own metrics tell that requests run, or that none does."""
    exchange.require_whole()
    count = running_requests(exchange.text)
    verb = "runs" if count else "does not run"
    require(bool(count) == wanted, f"a request {verb} after {exchange.elapsed_s:.2f} s")


@across
def equal(exchanges: Mapping[str, Exchange], paths: list[str]) -> None:
    """Values by `exchange:path` are one value; of a stream, `usage` is its usage."""
    values = {path: _value(exchanges, path) for path in paths}
    first = next(iter(values.values()))
    require(all(value == first for value in values.values()), f"these differ: {shortened(values)}")


@across
def differ(exchanges: Mapping[str, Exchange], paths: list[str]) -> None:
    """Values by `exchange:path` are all different."""
    values = [_value(exchanges, path) for path in paths]
    require(len(set(values)) == len(values), f"some are equal: {shortened(values)}")


@across
def rising(exchanges: Mapping[str, Exchange], paths: list[str]) -> None:
    """Numbers by `exchange:path`, each above the one before it."""
    values = [_value(exchanges, path) for path in paths]
    require(all(a < b for a, b in pairwise(values)), f"they do not rise: {values}")


@across
def counts_down(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """To requests of one key in turn, one limit is told, and each time one request less is left;
    once, a minute may have ended in between."""
    told = [exchanges[name] for name in names]
    if any(exchange.status == 429 for exchange in told):
        raise Unsuitable(f"the limited key is not let in {len(told)} times: wait a minute")
    limits = [_told(exchange, "x-ratelimit-limit-requests") for exchange in told]
    left = [_told(exchange, "x-ratelimit-remaining-requests") for exchange in told]
    steps = [before - after for before, after in pairwise(left)]
    counts = len(set(limits)) == 1 and max(left) < limits[0] and steps.count(1) >= len(steps) - 1
    require(counts, f"the limit is {limits}, of which are left {left}")


@across
def same_connection(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    used = {exchanges[name].connection for name in names}
    require(len(used) == 1, f"{len(names)} requests in turn took {len(used)} connections")


def require_json(exchange: Exchange) -> None:
    header(exchange, {"content-type": "^application/json"})


@cache
def _schemas() -> dict[str, Draft202012Validator]:
    schemas = data("schemas.yaml")
    return {
        name: Draft202012Validator({**schema, "$defs": schemas}) for name, schema in schemas.items()
    }


def _require_schema(value: Any, name: str) -> None:
    for fault in _schemas()[name].iter_errors(value):
        place = ".".join(map(str, fault.absolute_path)) or "the answer"
        raise Broken(f"{place}: {shortened(fault.message, 200)}")


def _told(exchange: Exchange, name: str) -> int:
    header(exchange, {name: "^[0-9]{1,9}$"})
    return int(exchange.headers[name])


def _require_within(found: Any, wanted: Any, path: str) -> None:
    if isinstance(wanted, dict):
        require(isinstance(found, dict | list), f"{path} is {shortened(found)}")
        for name, inner in wanted.items():
            _require_within(value_at(found, name), inner, f"{path}.{name}")
    elif isinstance(wanted, list):
        require_equal(f"the length of {path}", len(found), len(wanted))
        for index, inner in enumerate(wanted):
            _require_within(found[index], inner, f"{path}.{index}")
    else:
        require_equal(path, found, wanted)


def _value(exchanges: Mapping[str, Exchange], path: str) -> Any:
    name, _, inside = path.partition(":")
    exchange = exchanges[name]
    if not exchange.is_stream:
        return value_at(exchange.json, inside)
    usages = [chunk["usage"] for chunk in exchange.chunks if chunk.get("usage")]
    return value_at({"usage": usages[-1] if usages else None}, inside)
