"""`tenuto models warm`: so that no client waits for what a host does once for each model."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tenuto.cli.serve import registry_path, settings_at
from tenuto.engine.base import Backend
from tenuto.engine.phases import Phases
from tenuto.engine.types import EngineSpec
from tenuto.errors import CheckpointError, ConfigError, TenutoError
from tenuto.models.registry import Entry, Registry, load_registry
from tenuto.models.room import Room, placed

NONE: frozenset[str] = frozenset()


def warm(
    models: Annotated[
        list[str] | None, typer.Argument(help="Ids; else every model on this host.")
    ] = None,
    registry: Annotated[Path | None, typer.Option(help="Registry file.")] = None,
) -> None:
    """Start each model, end it, and say where the seconds went. Exit code 1: one did not start.

    Fills what later starts read: rewritten checkpoints, compiled kernels, the page cache.
    """
    # Imported late: the other commands start faster without the server's modules.
    from tenuto.access.keys import keys_from
    from tenuto.engine.arguments import engine_argument_names
    from tenuto.engine.forkserver import EngineContext, prepare_environment
    from tenuto.engine.lazy import LazyVllm
    from tenuto.observe.logs import log_to_stderr
    from tenuto.wiring import room_of

    settings = settings_at(registry)
    known = load_registry(registry_path(settings), engine_argument_names())
    entries, room, console = _chosen(known, models), room_of(settings), Console(highlight=False)
    room.plan(known.present())
    # It takes them out of the environment, which engines inherit.
    keys_from(os.environ, None, None)
    prepare_environment()
    log_to_stderr("warning", "text")
    context = EngineContext(partial(log_to_stderr, "warning", "text"))
    context.start_server()
    backend = LazyVllm(context, settings.cache_dir.expanduser(), drain_s=0)

    async def run() -> bool:
        with _shown(console, "vLLM"):
            import_s = await backend.imported()
        all_started = await warm_all(backend, entries, room, console)
        beside = f"{import_s:.1f} s here, beside {context.import_s():.1f} s in the fork server"
        console.print(f"Once for all of them vLLM was imported: {beside}", soft_wrap=True)
        return all_started

    if not asyncio.run(run()):
        raise typer.Exit(1)


def _chosen(registry: Registry, names: Sequence[str] | None) -> Sequence[Entry]:
    """Errors: `ConfigError`, `CheckpointError`."""
    if not names:
        return registry.present()
    entries: dict[str, Entry] = {}
    for name in names:
        target = registry.find(name)
        if target is None:
            raise ConfigError(f"the registry has no {name!r}")
        entry = target.entry
        if entry.checkpoint is None:
            raise CheckpointError(
                f"{entry.id} is not on this host: run `tenuto models pull {entry.id}`"
            )
        entries[entry.id] = entry
    return tuple(entries.values())


async def warm_all(
    backend: Backend, entries: Sequence[Entry], room: Room, console: Console
) -> bool:
    """Whether all of them started."""
    failures = 0
    for entry in entries:
        with _shown(console, entry.id):
            try:
                phases = await _warmed(backend, _spec(entry, room))
                said = f"model {entry.id}: {sum(phases.values()):.1f} s ({phases})"
            except TenutoError as error:
                said, failures = error.message, failures + 1
            finally:
                room.vacate(entry.id)
        console.print(said, markup=False, soft_wrap=True)
    return not failures


def _spec(entry: Entry, room: Room) -> EngineSpec:
    """As the server starts it when it is alone. Errors: `ConfigError`."""
    alone = frozenset({entry.id})
    if not room.fits(alone, NONE):
        raise ConfigError(f"model {entry.id}: it is larger than the memory for models")
    return placed(entry, room.place(entry.id, NONE, NONE))


async def _warmed(backend: Backend, spec: EngineSpec) -> Phases:
    phases = Phases()
    with phases.timed("tokenizer"):
        await backend.prompts(spec)
    engine = await backend.engine(spec)
    phases.update(engine.start_phases)
    try:
        with phases.timed("first answer"):
            await engine.check()
    finally:
        await engine.close(0)
    return phases


@contextmanager
def _shown(console: Console, model_id: str) -> Iterator[None]:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    seen = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not seen) as progress:
        progress.add_task(model_id, total=None)
        yield
