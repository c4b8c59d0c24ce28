"""What a run found, and whether that is what was expected."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

from tenuto.conformance.cases import Case, CaseError
from tenuto.conformance.facts import Facts
from tenuto.conformance.run import Cost, Outcome, Result


@dataclass(frozen=True)
class Report:
    """One run. `expected` says by id which failures are known, and why; `target` is the base URL,
    or the recording."""

    target: str
    facts: Facts
    results: Sequence[Result]
    cost: Cost
    elapsed_s: float
    kit_version: str
    expected: Mapping[str, str] = field(default_factory=dict)
    rate_limited: int = 0
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def failures(self) -> list[Result]:
        """Musts that failed and were not expected to."""
        return [r for r in self.results if r.breaks and r.case.id not in self.expected]

    @property
    def warnings(self) -> list[Result]:
        """What a server should do, and this one does not."""
        return [
            r
            for r in self.results
            if r.outcome == "failed" and not r.case.is_must and r.case.id not in self.expected
        ]

    @property
    def stale(self) -> list[str]:
        """Expected failures that passed: the baseline says what is no longer true."""
        return [
            r.case.id for r in self.results if r.outcome == "passed" and r.case.id in self.expected
        ]

    @property
    def unjudged(self) -> list[Result]:
        """Musts of which the kit cannot say anything: without them there is no good verdict."""
        return [r for r in self.results if r.outcome == "not judged" and r.case.is_must]

    @property
    def breaks(self) -> bool:
        """The server does not conform, or the baseline does not say what is true."""
        return bool(self.failures or self.stale)

    @property
    def conforms(self) -> bool:
        return not self.breaks and not self.unjudged

    @property
    def verdict(self) -> str:
        if self.breaks:
            return "does not conform"
        return "conforms" if self.conforms else "no verdict"

    def counts(self, cases: Iterable[Case] | None = None) -> Counter[Outcome]:
        """Results by outcome, of these cases or of all."""
        wanted = None if cases is None else {case.id for case in cases}
        return Counter(r.outcome for r in self.results if wanted is None or r.case.id in wanted)

    def groups(self) -> dict[str, list[Result]]:
        """Results by endpoint, in the order of the cases."""
        groups: dict[str, list[Result]] = {}
        for result in self.results:
            groups.setdefault(result.case.group, []).append(result)
        return groups


def load_baseline(path: Path, cases: Iterable[Case]) -> dict[str, str]:
    """`{id: why}` of the failures that are expected. Errors: `CaseError`, also for unknown ids."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CaseError(f"cannot read the baseline {path}: {error}") from None
    if not isinstance(rows, dict):
        raise CaseError(f"{path}: a baseline is a map of ids to reasons")
    known = {case.id for case in cases}
    unknown = [id for id in rows if id not in known]
    if unknown:
        raise CaseError(f"{path}: there is no case {unknown[0]!r}")
    return {id: str(why) for id, why in rows.items()}
