"""`tenuto models`: what the registry names, and getting it onto this host."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tenuto.cli.serve import registry_path, settings_from
from tenuto.errors import ConfigError
from tenuto.models.checkpoint import is_directory_source, pull
from tenuto.models.registry import Registry, load_registry

app = typer.Typer(no_args_is_help=True, help="The models of the registry.")
RegistryOption = Annotated[Path | None, typer.Option("--registry", help="Registry file.")]


@app.command("list")
def list_models(registry: RegistryOption = None) -> None:
    """List the registry's models and LoRAs, and whether their checkpoints are on this host."""
    table = Table("model", "on this host", "context", "GPUs", "license", "source", box=None)
    for target in _registry(registry).targets():
        entry = target.entry
        table.add_row(
            target.id,
            "yes" if target.is_present else "no",
            str(entry.max_model_len or "model's"),
            str(entry.tensor_parallel_size * entry.pipeline_parallel_size),
            target.license or "",
            target.source_id,
        )
    Console(width=None if os.isatty(1) else 200).print(table)


@app.command("pull")
def pull_model(model: str, registry: RegistryOption = None) -> None:
    """Download a model's checkpoint into the local Hugging Face cache."""
    target = _registry(registry).find(model)
    if target is None:
        raise ConfigError(f"the registry has no {model!r}")
    if is_directory_source(target.source):
        raise ConfigError(f"{target.id} is served from a directory; there is nothing to download")
    typer.echo(str(pull(target.source, target.revision)))


def _registry(path: Path | None) -> Registry:
    return load_registry(registry_path(settings_from({"registry": path} if path else {})))
