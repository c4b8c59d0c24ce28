"""Dashboard, rules and the table of metrics, as the tests read them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy.conftest import DEPLOY, ROOT

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "tenuto.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "prometheus" / "tenuto.rules.yml").read_text()
)["groups"][0]["rules"]
VARIABLES = {"$__rate_interval": "15s", "$instance": ".+", "$model": ".*"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


@dataclass(frozen=True)
class Query:
    """One line of a panel, with Grafana's variables filled in; the labels that its legend shows."""

    panel: str
    expr: str
    labels: frozenset[str]


def queries() -> Iterator[Query]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            labels = frozenset(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            yield Query(f"{panel['id']} {panel['title']}", expr, labels)


def variable_queries() -> dict[str, str]:
    """The metric that each variable's values are taken from."""
    found = DASHBOARD["templating"]["list"]
    pattern = re.compile(r"label_values\((\w+), (\w+)\)")
    matches = [pattern.fullmatch(v["query"]["query"]) for v in found if v["type"] == "query"]
    return {match[2]: match[1] for match in matches if match is not None}


def names_in(expr: str) -> set[str]:
    """The metrics of a PromQL expression."""
    return set(re.findall(r"\b(?:tenuto|process|python)_\w+", expr))


def named() -> set[str]:
    """Every metric that the dashboard or a rule names."""
    exprs = [query.expr for query in queries()] + [rule["expr"] for rule in RULES]
    exprs += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    return set.union(*map(names_in, exprs)) | set(variable_queries().values())


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric in the table."""
    section = OPERATIONS.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \|", section, re.M)
    return {name: (kind, set(labels.split(", ")) - {""}) for name, kind, labels in rows}


def documented_samples() -> set[str]:
    """The names under which Prometheus knows them."""
    return {name + suffix for name, (kind, _) in documented().items() for suffix in SUFFIXES[kind]}
