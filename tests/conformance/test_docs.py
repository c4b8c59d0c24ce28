"""docs/conformance.md against what it speaks of."""

import re
from collections import Counter

import pytest
import yaml
from typer.testing import CliRunner

from tenuto.cli import app
from tenuto.conformance.cases import all_cases
from tests.repo.test_rules import ROOT

TEXT = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
KNOWN: dict[str, str] = yaml.safe_load((ROOT / "tests/peers/reference_stack.yaml").read_text())


def test_the_table_of_the_reference_stack_is_what_its_test_expects() -> None:
    """Every reason with the number of cases that fail by it."""
    rows = re.findall(r"^\| (.+?) \| (\d+) \| .+ \|$", TEXT, re.M)
    assert {why: int(count) for why, count in rows} == Counter(KNOWN.values())


def test_the_example_is_a_case() -> None:
    example = TEXT.split("```yaml\n")[1].split("```")[0]
    (row,) = yaml.safe_load(re.sub(r"^  on:", '  "on":', example, flags=re.M))
    cases = [case for case in all_cases() if case.id.endswith(f"/{row['id']}")]
    assert [case.way for case in cases] == row["on"]
    assert {case.requires for case in cases} == {row["requires"]}
    assert [case.check for case in cases] == [row["check"]] * len(cases)


@pytest.mark.parametrize("command", ["run", "compare", "record", "replay", "cases"])
def test_options_and_commands_exist(command: str) -> None:
    shown = CliRunner().invoke(app, ["conform", command, "--help"], terminal_width=200).output
    used = {
        option
        for line in re.findall(
            rf"^(?:.venv/bin/)?tenuto conform {command} (.+)$", TEXT + README, re.M
        )
        for option in re.findall(r"(--[a-z-]+)", line)
    }
    assert [option for option in used if option not in shown] == []
