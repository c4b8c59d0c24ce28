"""`tenuto keys`: who may use this server, and how much of it. A secret is printed once, alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from tenuto.cli.printing import print_table
from tenuto.cli.serve import settings_from
from tenuto.errors import ApiError, ConfigError

if TYPE_CHECKING:
    from tenuto.access.key_store import KeyStore, StoredKey

app = typer.Typer(
    no_args_is_help=True, help="The keys of clients, in TENUTO_STATE_DIR or TENUTO_DATABASE_URL."
)
NameArgument = Annotated[str, typer.Argument(help="A key's id, or the beginning of its secret.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As GET /admin/keys answers.")]
COLUMNS = {
    "id": "id",
    "prefix": "secret",
    "state": "state",
    "role": "role",
    "models": "models",
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "parallel_requests": "parallel",
    "tokens_per_month": "tokens/month",
    "expires_at": "expires",
    "note": "note",
}


@app.command("create")
def create_key(
    note: Annotated[str, typer.Option(help="Whose it is.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="Glob of the models that it may use; else all.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests in any 60 s.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Prompt and answer.")] = None,
    parallel_requests: Annotated[int | None, typer.Option(help="At the same time.")] = None,
    tokens_per_month: Annotated[int | None, typer.Option(help="In a month of UTC's.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="30d, 12h, 2027-01-31, or a time with its zone; else UTC.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="What requests may ask for; else 0.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May also use /admin/.")] = False,
) -> None:
    """Make a key. Its secret alone goes to the standard output, and cannot be shown again."""
    given = {
        "note": note,
        "role": "admin" if admin else None,
        "models": model,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "parallel_requests": parallel_requests,
        "tokens_per_month": tokens_per_month,
        "expires_at": expires,
        **_priorities(priority),
    }
    with _store() as store:
        from tenuto.access.new_key import NewKey
        from tenuto.wire.parse import parse

        said = {name: value for name, value in given.items() if value is not None}
        _hand_over(*store.create(parse(NewKey, said, "keys")))


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List all keys, also those that have expired or were revoked."""
    with _store() as store:
        rows = [_answer(stored) for stored in store.rows()]
    if as_json:
        typer.echo(msgspec.json.encode({"data": rows, "object": "list"}))
        return
    table = Table(*COLUMNS.values(), box=None)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in COLUMNS))
    print_table(table)


@app.command("show")
def show_key(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show all that is stored of a key."""
    with _store() as store:
        row = _answer(store.find(name))
    if as_json:
        typer.echo(msgspec.json.encode(row))
        return
    table = Table(box=None, show_header=False)
    for field, value in row.items():
        table.add_row(field, _cell(value))
    print_table(table)


@app.command("revoke")
def revoke_key(name: NameArgument) -> None:
    """End a key: running servers refuse it within 1 s."""
    with _store() as store:
        typer.echo(f"{store.revoke(name).key.id} is revoked", err=True)


@app.command("rotate")
def rotate_key(name: NameArgument) -> None:
    """Give a key a new secret; the old one ends within 1 s. Id, limits and usage stay."""
    with _store() as store:
        _hand_over(*store.rotate(name))


@contextmanager
def _store() -> Iterator["KeyStore"]:
    """Errors: `ConfigError`."""
    # Imported late: the other commands start faster without it.
    from tenuto.access.database import open_database
    from tenuto.access.key_store import KeyStore

    settings = settings_from({})
    database = open_database(settings.state_dir.expanduser(), settings.database_url)
    try:
        yield KeyStore(database)
    except ApiError as error:
        raise ConfigError(error.message) from None
    finally:
        database.dispose()


def _priorities(text: str | None) -> dict[str, int]:
    """Errors: `ConfigError`."""
    if text is None:
        return {}
    try:
        first, last = map(int, text.split(":"))
    except ValueError:
        raise ConfigError(f"--priority {text}: should be two numbers, such as -5:5") from None
    return {"first_priority": first, "last_priority": last}


def _hand_over(stored: "StoredKey", secret: str) -> None:
    typer.echo(f"{stored.key.id}: this secret is not shown again:", err=True)
    typer.echo(secret)


def _answer(stored: "StoredKey") -> dict[str, Any]:
    from tenuto.api.admin_keys import admin_key

    answer: dict[str, Any] = msgspec.to_builtins(admin_key(stored))
    return answer


def _cell(value: str | int | Sequence[str] | None) -> str:
    if value is None:
        return ""
    return escape(str(value) if isinstance(value, str | int) else " ".join(value))
