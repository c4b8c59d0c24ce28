"""The `tenuto` command. No logic here beyond parsing arguments and printing."""

import sys

import typer

from tenuto.cli import bench, conform, keys, models, serve, usage
from tenuto.errors import ConfigError, TenutoError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command("serve")(serve.serve)
app.command("usage")(usage.usage)
app.command("bench")(bench.bench)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(conform.app, name="conform")


def main() -> None:
    """Exit code 2: the owner's input is wrong, nothing was started. 1: it failed."""
    try:
        app()
    except TenutoError as error:
        print(f"tenuto: {error.message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
