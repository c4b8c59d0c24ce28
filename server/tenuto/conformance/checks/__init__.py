"""What a case may require of its answers. Each check is one function; the YAML calls it by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from tenuto.conformance.answer import UNREADABLE
from tenuto.conformance.cases import Case, CaseError
from tenuto.conformance.checks import answers, http, sampling, streams, texts
from tenuto.conformance.checks.registry import ACROSS, EACH
from tenuto.conformance.exchange import Broken, Exchange

# A case that says nothing of an exchange's status wants it to succeed.
_SAY_STATUS = {"status", "error"}
MODULES = (answers, http, sampling, streams, texts)


def judge(case: str, checks: list[dict[str, Any]], exchanges: Mapping[str, Exchange]) -> None:
    """Errors: `Broken` with the first requirement that is not met, `CaseError` for a bad case."""
    said = {name for check in checks for name in _said(check, exchanges)}
    for name, exchange in exchanges.items():
        if name not in said and not exchange.left:
            _require_success(name, exchange)
    for check in checks:
        _apply(case, dict(check), exchanges)


def refused(case: Case) -> set[str]:
    """The names of the requests that must be answered with an error."""
    checks = [check for check in case.check if "error" in check]
    return {name for check in checks for name in _targets(check, case.send)}


def _said(check: Mapping[str, Any], exchanges: Mapping[str, Exchange]) -> list[str]:
    return _targets(check, exchanges) if _SAY_STATUS & check.keys() else []


def _targets(check: Mapping[str, Any], exchanges: Iterable[str]) -> list[str]:
    of = check.get("of", list(exchanges))
    return [of] if isinstance(of, str) else of


def _require_success(name: str, exchange: Exchange) -> None:
    exchange.require_whole()
    if exchange.status != 200:
        raise Broken(f"{name}: status {exchange.status} instead of 200: {exchange.text[:300]}")


def _apply(case: str, check: dict[str, Any], exchanges: Mapping[str, Exchange]) -> None:
    targets = _targets(check, exchanges)
    check.pop("of", None)
    [(name, wanted)] = check.items()
    if name not in ACROSS | EACH:
        raise CaseError(f"{case}: there is no check {name!r}")
    if unknown := [target for target in targets if target not in exchanges]:
        raise CaseError(f"{case}: no request is named {unknown[0]!r}")
    try:
        if name in ACROSS:
            ACROSS[name](exchanges, wanted)
        else:
            for target in targets:
                _named(target, EACH[name], exchanges[target], wanted, len(exchanges))
    except UNREADABLE as error:
        what = f"{type(error).__name__}: {error}"
        raise Broken(f"the answer has not the shape that is read here ({what})") from None


def _named(target: str, each: Any, exchange: Exchange, wanted: Any, num_exchanges: int) -> None:
    try:
        each(exchange, wanted)
    except Broken as broken:
        message = f"{target}: {broken}" if num_exchanges > 1 else str(broken)
        raise type(broken)(message) from None
