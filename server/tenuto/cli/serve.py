"""`tenuto serve`."""

import gc
import ipaddress
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from tenuto.access.keys import Keys, keys_from
from tenuto.errors import ConfigError, quoted
from tenuto.settings import Settings

if TYPE_CHECKING:
    from tenuto.access.watching import KeyWatcher

logger = logging.getLogger("tenuto.serve")
# Before garbage is looked for among them.
NEW_OBJECTS = 50_000
# As with keys: no engine process inherits them.
HOLDS_PASSWORD = ("TENUTO_DATABASE_URL", "TENUTO_REDIS_URL")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    registry: Annotated[Path | None, typer.Option(help="Registry file.")] = None,
    models: Annotated[str | None, typer.Option(help="Ids to load, separated by commas.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="One API key per line.")] = None,
    admin_key_file: Annotated[Path | None, typer.Option(help="One admin key per line.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Open on any address.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the registry file.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Ray cluster: host:port, or local.")] = None,
) -> None:
    """Serve the models of the registry."""
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "registry": registry,
        "models": models,
        "api_key_file": api_key_file,
        "admin_key_file": admin_key_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "no_auth": no_auth or None,
        "watch": watch or None,
        "cluster": cluster,
    }
    settings = settings_from({name: value for name, value in given.items() if value is not None})
    keys = keys_from(os.environ, settings.api_key_file, settings.admin_key_file)
    for name in HOLDS_PASSWORD:
        os.environ.pop(name, None)
    watcher = with_stored(keys, settings.state_dir.expanduser(), settings.database_url)
    require_keys(settings, keys)
    run(settings, watcher)


def settings_from(given: dict[str, Any]) -> Settings:
    """Errors: `ConfigError`."""
    try:
        return Settings(**given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in detail["loc"])
        raise ConfigError(
            f"setting {name}: {detail['msg']}, got {quoted(detail['input'])}"
        ) from None
    except SettingsError as error:
        raise ConfigError(f"settings: {error}: not valid JSON") from None


def settings_at(registry: Path | None) -> Settings:
    """With another registry, where one is named. Errors: `ConfigError`."""
    return settings_from({"registry": registry} if registry else {})


def with_stored(keys: Keys, state_dir: Path, database_url: str | None = None) -> "KeyWatcher":
    """`keys` then has the stored ones as well. Errors: `ConfigError`."""
    # Imported late: the other commands start faster without the database.
    from tenuto.access.database import open_database
    from tenuto.access.key_store import KeyStore
    from tenuto.access.watching import KeyWatcher

    watcher = KeyWatcher(KeyStore(open_database(state_dir, database_url)), keys)
    watcher.look()
    return watcher


def require_keys(settings: Settings, keys: Keys) -> None:
    """Errors: `ConfigError` for an open server that others could reach."""
    if keys or settings.no_auth or _is_loopback(settings.host):
        return
    raise ConfigError(
        f"without API keys the server listens on loopback only, not on {settings.host}: set "
        "TENUTO_API_KEYS, run `tenuto keys create`, or accept everyone with --no-auth"
    )


def run(settings: Settings, watcher: "KeyWatcher") -> None:
    # Imported late: the other commands start faster without the server's modules.
    from tenuto.engine.arguments import engine_argument_names
    from tenuto.engine.forkserver import EngineContext, prepare_environment
    from tenuto.models.registry import chosen_models, load_registry
    from tenuto.observe.logs import log_to_stderr
    from tenuto.serving import address, listen, tls_of

    path = registry_path(settings)
    registry = load_registry(path, engine_argument_names())
    eager = chosen_models(registry, settings.models)
    set_up_logs = partial(log_to_stderr, settings.log_level, settings.log_format)
    set_up_logs()
    tls = tls_of(settings.tls_cert, settings.tls_key)
    prepare_environment()
    context = EngineContext(set_up_logs)
    if settings.cluster is not None:
        # First: who listens already is taken by a proxy for one that answers.
        _join(settings.cluster, settings.node_ip)
    listener = listen(settings.host, settings.port)
    if settings.cluster is None:
        context.start_server()
    from tenuto.wiring import server_of

    server = server_of(settings, path, registry, watcher, eager, context, tls)
    logger.info("listening on %s", address(listener, is_tls=tls is not None))
    # What it consists of stays, and of what a request has made hardly anything is garbage that
    # counting references does not find. Looking for it after each 700 objects took up to a fifth of
    # all processor time, and 40 ms at once.
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)
    server.run(sockets=[listener])
    sys.exit(1 if server.failed else 0)


def _join(cluster: str, node_ip: str | None) -> None:
    """Errors: `ConfigError`."""
    try:
        from tenuto.engine.ray import connect
    except ImportError as error:
        raise ConfigError(
            f"--cluster needs Ray ({error}): run scripts/setup cluster, or install tenuto[cluster]"
        ) from None
    logger.info("joining the Ray cluster %s", cluster)
    connect(cluster, node_ip)


def registry_path(settings: Settings) -> Path:
    if settings.registry is not None:
        return settings.registry
    local = Path("model_registry.yaml")
    return local if local.is_file() else Path(__file__).parent.parent / "demo" / "registry.yaml"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
