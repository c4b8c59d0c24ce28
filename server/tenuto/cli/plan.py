"""`tenuto models plan`: what fits together, what must swap, and what would make the rest fit."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tenuto.cli.printing import PIPE_COLUMNS
from tenuto.cli.serve import registry_path, settings_at
from tenuto.errors import CheckpointError, ConfigError
from tenuto.models.devices import devices_of, installed_devices, sleep_bytes_of
from tenuto.models.planner import (
    Device,
    Fit,
    Host,
    Misfit,
    Need,
    Together,
    alone,
    gib,
    sleepers,
    together,
)
from tenuto.models.registry import Entry, load_registry
from tenuto.models.sizes import need_of


def plan(
    registry: Annotated[Path | None, typer.Option(help="Registry file.")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="Memory of a GPU, such as 141GiB or 80GiBx2; may be repeated."),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="For sleeping models, such as 256GiB; else 80 % of it.")
    ] = None,
) -> None:
    """Show which models fit on the GPUs, alone and together, and what would make others fit."""
    found = load_registry(registry_path(settings_at(registry)))
    host = Host(_devices(gpu), sleep_bytes_of(host_memory, "--host-memory"))
    needs: dict[str, Need] = {}
    unknown: dict[str, str] = {}
    for entry in found.entries.values():
        try:
            needs[entry.id] = need_of(entry)
        except CheckpointError as error:
            unknown[entry.id] = _why_unknown(entry, error)
    console = Console(width=None if os.isatty(1) else PIPE_COLUMNS, markup=False, highlight=False)
    _print(console, host, list(needs.values()), unknown)


def _why_unknown(entry: Entry, error: CheckpointError) -> str:
    if entry.checkpoint is None:
        return f"unknown until it is pulled: tenuto models pull {entry.id}"
    return error.message


def _print(console: Console, host: Host, needs: list[Need], unknown: dict[str, str]) -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    for device in host.devices:
        say(f"GPU {device.index}: {gib(device.total_bytes)}, usable {gib(device.usable_bytes)}")
    verdicts = {need.model_id: alone(need, host.devices) for need in needs}
    say("\nEach alone")
    console.print(_table(needs, verdicts, unknown))
    for model_id, verdict in verdicts.items():
        if isinstance(verdict, Misfit):
            say(f"{model_id} does not fit: {_advice(verdict)}")
    for model_id, reason in unknown.items():
        say(f"{model_id}: {reason}")
    plan = together(needs, host)
    say("\nTogether")
    console.print(_together_table(needs, plan))
    for line in _swap_lines(verdicts, plan):
        say(line)
    say(f"\n{_sleep_line(needs, host.sleep_bytes)}")


def _table(needs: list[Need], verdicts: dict[str, Fit | Misfit], unknown: dict[str, str]) -> Table:
    table = Table("model", box=None)
    for name in ("weights", "KV per token", "GPUs", "context", "KV tokens", "contexts at once"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    for need in needs:
        table.add_row(
            need.model_id,
            gib(need.weights_bytes),
            f"{need.kv_bytes_per_token / 1024:,.1f} KiB",
            str(need.gpus),
            f"{need.max_model_len:,}",
            *_verdict_cells(verdicts[need.model_id]),
        )
    for model_id in unknown:
        table.add_row(model_id, *["?"] * (len(table.columns) - 1))
    return table


def _verdict_cells(verdict: Fit | Misfit) -> tuple[str, str, str]:
    if isinstance(verdict, Misfit):
        return "-", "-", "no"
    return f"{verdict.kv_tokens:,}", f"{verdict.max_concurrent_contexts:,.1f}", "yes"


def _advice(misfit: Misfit) -> str:
    if not misfit.changes:
        return misfit.reason
    smallest, *others = (f"`{change}`" for change in misfit.changes)
    return f"{misfit.reason}. It would with {smallest}" + "".join(f", or {c}" for c in others)


def _together_table(needs: list[Need], plan: Together) -> Table:
    table = Table("model", "on GPU", box=None)
    for name in ("KV cache of each GPU", "KV tokens"):
        table.add_column(name, justify="right")
    for need in (need for need in needs if need.model_id in plan.loaded):
        kv_bytes = plan.kv_bytes[need.model_id]
        indexes = ", ".join(str(index) for index in plan.loaded[need.model_id])
        table.add_row(need.model_id, indexes, gib(kv_bytes), f"{need.tokens_in(kv_bytes):,}")
    return table


def _swap_lines(verdicts: dict[str, Fit | Misfit], plan: Together) -> list[str]:
    lines = []
    for model_id, verdict in verdicts.items():
        if model_id in plan.swaps:
            lines.append(f"swap: {model_id} in place of {', '.join(plan.swaps[model_id])}")
        elif isinstance(verdict, Fit) and model_id not in plan.loaded:
            lines.append(f"never: {model_id} does not fit beside the pinned models")
    return lines


def _sleep_line(needs: list[Need], sleep_bytes: int) -> str:
    asleep = sleepers(needs, sleep_bytes)
    awake = [need.model_id for need in needs if need.model_id not in asleep]
    text = f"Asleep in {gib(sleep_bytes)} of host memory: {', '.join(asleep) or 'none'}"
    return f"{text}. No room for {', '.join(awake)}" if awake else text


def _devices(texts: list[str] | None) -> tuple[Device, ...]:
    found = devices_of(texts, "--gpu") if texts else installed_devices()
    if not found:
        raise ConfigError("no NVIDIA GPU was found here: name one, such as --gpu 141GiB or 80GiBx2")
    return found
