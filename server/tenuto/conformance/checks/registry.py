"""The names of the checks: of each answer alone, and across several."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from tenuto.conformance.answer import Answer, folded
from tenuto.conformance.cases import CaseError
from tenuto.conformance.exchange import Broken, Exchange, shortened

Each = Callable[[Exchange, Any], None]
Across = Callable[[Mapping[str, Exchange], Any], None]
EACH: dict[str, Each] = {}
ACROSS: dict[str, Across] = {}


def each(check: Each) -> Each:
    """Reads one exchange; `of` in the case names those it is for, all of them without."""
    EACH[check.__name__] = check
    return check


def across(check: Across) -> Across:
    """Reads several exchanges, which its argument names."""
    ACROSS[check.__name__] = check
    return check


def answers_of(exchanges: Mapping[str, Exchange], names: list[str]) -> list[Answer]:
    """Those named, in this order; `best*` names all that begin so."""
    found = {glob: fnmatch.filter(exchanges, glob) for glob in names}
    if missing := [glob for glob, matching in found.items() if not matching]:
        raise CaseError(f"no request is named {missing[0]}")
    return [folded(exchanges[name]) for matching in found.values() for name in matching]


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


def require_equal(what: str, found: Any, wanted: Any) -> None:
    require(found == wanted, f"{what} is {shortened(found)} instead of {shortened(wanted)}")


def value_at(value: Any, path: str) -> Any:
    """`choices.0.text` of a JSON value. Errors: `Broken` when it is not there."""
    for step in path.split("."):
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise Broken(f"there is no {path}: {shortened(value)}") from None
    return value
