"""`tenuto usage`: what was asked of the models, by key, model and day."""

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tenuto.cli.printing import print_table
from tenuto.cli.serve import settings_from
from tenuto.errors import ConfigError


class By(StrEnum):
    DAY = "day"
    KEY = "key"
    MODEL = "model"


Day = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day in UTC, included; else all.")
]


def usage(
    by: Annotated[list[By] | None, typer.Option(help="Can be repeated; else by day.")] = None,
    since: Day = None,
    until: Day = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Show requests and tokens by day, key or model."""
    # Imported late: the other commands start faster without SQLAlchemy.
    from tenuto.access import usage_queries
    from tenuto.access.database import open_database

    if as_csv and as_json:
        raise ConfigError("--csv and --json: choose one of them")
    groups = list(by or [By.DAY])
    settings = settings_from({})
    engine = open_database(settings.state_dir.expanduser(), settings.database_url)
    first, last = (day and day.date() for day in (since, until))
    rows = usage_queries.totals(engine, groups, first, last)
    engine.dispose()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif as_csv:
        typer.echo(usage_queries.as_csv(groups, rows), nl=False)
    else:
        _print(usage_queries.columns(groups), rows)


def _print(columns: list[str], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for name in columns:
        is_number = name not in (*By, "note")
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in columns))
    print_table(table)


def _cell(name: str, value: Any) -> str:
    if name == By.KEY and not value:
        return "(no key)"
    return escape(value) if isinstance(value, str) else f"{value:,}"
