"""`tenuto models`: what the registry names, getting it onto this host, and what it is there."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape
from rich.table import Table

from tenuto.cli.plan import plan
from tenuto.cli.printing import print_table
from tenuto.cli.serve import registry_path, settings_at
from tenuto.cli.warm import warm
from tenuto.errors import CheckpointError, ConfigError
from tenuto.models.checkpoint import is_directory_source
from tenuto.models.devices import devices_of, installed_devices
from tenuto.models.planner import Device, Fit, alone
from tenuto.models.registry import Entry, Registry, Target, load_registry
from tenuto.models.sizes import need_of

app = typer.Typer(no_args_is_help=True, help="The models of the registry.")
app.command("plan")(plan)
app.command("warm")(warm)
RegistryOption = Annotated[Path | None, typer.Option("--registry", help="Registry file.")]


@app.command("list")
def list_models(
    registry: RegistryOption = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="Memory of a GPU, such as 141GiB; else as found here.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A running server, to show the states there.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="The variable with its key.")] = "TENUTO_API_KEY",
) -> None:
    """List the registry's models and LoRAs: state, size, whether each fits alone, license."""
    devices = devices_of(gpu, "--gpu") if gpu else installed_devices()
    states = _states(base_url, os.environ.get(api_key_env)) if base_url else {}
    columns = ("model", "state", "size", "fits", "context", "GPUs", "license", "source")
    table = Table(*columns, box=None)
    for target in _registry(registry).targets():
        entry = target.entry
        directory = _directory(target)
        here = "on this host" if target.is_present else "not pulled"
        table.add_row(
            target.id,
            states.get(entry.id, here),
            _size(directory) if directory is not None else "",
            _fits(entry, devices) if target.lora is None else "",
            str(entry.max_model_len or "model's"),
            str(entry.tensor_parallel_size * entry.pipeline_parallel_size),
            target.license or "",
            target.source_id,
        )
    print_table(table)


def _fits(entry: Entry, devices: Sequence[Device]) -> str:
    """`?`: without its checkpoint or a GPU nobody can tell."""
    try:
        return (
            ("yes" if isinstance(alone(need_of(entry), devices), Fit) else "no") if devices else "?"
        )
    except CheckpointError:
        return "?"


def _states(base_url: str, key: str | None) -> dict[str, str]:
    """Of the models of a running server. Errors: `ConfigError`."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/model/info"
        rows = httpx.get(url, headers=headers).raise_for_status().json()["data"]
        return {row["model_name"]: row["model_info"]["state"] for row in rows}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--base-url {base_url}: {error}") from None


@app.command("pull")
def pull_model(
    model: str,
    registry: RegistryOption = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Address of the hub; else HF_ENDPOINT, or huggingface.co.")
    ] = None,
) -> None:
    """Download a model or a LoRA into the local Hugging Face cache, and check it."""
    from tenuto.models.hub import pull

    target = _target(model, registry)
    if is_directory_source(target.source):
        raise ConfigError(f"{target.id} is served from a directory; there is nothing to download")
    code = target.entry.trust_remote_code and target.lora is None
    adapter = target.lora is not None
    pulled = pull(target.source, target.revision, adapter=adapter, code=code, endpoint=endpoint)
    typer.echo(f"{pulled.directory}\nrevision: {pulled.commit}")


@app.command("verify")
def verify_model(
    model: Annotated[str, typer.Argument(help="An id of the registry, or a directory.")],
    registry: RegistryOption = None,
) -> None:
    """Check that a checkpoint is whole: config, tokenizer, template, weights, FP8. Exit code 1: it
    is not."""
    from tenuto.models.verify import Problem, findings

    directory, target = _located(model, registry)
    said: dict[str, Any] = {}
    if target is not None and target.lora is None:
        entry = target.entry
        said = {"max_model_len": entry.max_model_len, "chat_template": entry.template_text}
        said["task"] = entry.task
    found = findings(directory, **said)
    table = Table("check", "", "", box=None)
    for finding in found:
        verdict = "problem" if isinstance(finding, Problem) else "ok"
        table.add_row(finding.check, verdict, escape(finding.detail))
    print_table(table)
    if any(isinstance(finding, Problem) for finding in found):
        raise typer.Exit(1)


@app.command("quantize")
def quantize_model(
    source: Annotated[str, typer.Argument(help="A 16-bit model: an id, or a directory.")],
    destination: Annotated[Path, typer.Argument(help="The directory to be written.")],
    registry: RegistryOption = None,
) -> None:
    """Write a 16-bit checkpoint as FP8-Dynamic (compressed-tensors). Needs no data and no GPU."""
    directory, _ = _located(source, registry)
    try:
        from tenuto.engine.quantize import quantize
    except ModuleNotFoundError as error:
        raise ConfigError(f"quantising needs the package {error.name}; vLLM brings it") from None
    quantize(directory, destination)
    typer.echo(str(destination))


def _located(model: str, registry: Path | None) -> tuple[Path, Target | None]:
    """The directory of a model that is on this host, and what the registry says of it."""
    directory = Path(model).expanduser()
    if is_directory_source(model) and not directory.is_dir():
        raise ConfigError(f"no directory {model}")
    if directory.is_dir() and (
        is_directory_source(model) or _registry(registry).find(model) is None
    ):
        return directory, None
    target = _target(model, registry)
    found = _directory(target)
    if found is None:
        raise CheckpointError(
            f"{target.id} is not on this host: run `tenuto models pull {target.id}`"
        )
    return found, target


def _target(model: str, registry: Path | None) -> Target:
    target = _registry(registry).find(model)
    if target is None:
        raise ConfigError(f"the registry has no {model!r}")
    return target


def _directory(target: Target) -> Path | None:
    if target.lora is not None:
        return target.entry.adapters.get(target.lora.id)
    return target.entry.checkpoint


def _size(directory: Path) -> str:
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _registry(path: Path | None) -> Registry:
    return load_registry(registry_path(settings_at(path)))
