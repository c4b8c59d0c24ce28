"""The demo model with its first layer alone: the engine costs so little that the front shows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tenuto.engine.safetensors_file import read_shard, write_shard

DEMO = Path(__file__).parents[2] / "server" / "tenuto" / "demo" / "checkpoint"


def make_one_layer(directory: Path) -> Path:
    """Its text is no sense, which nothing here looks at."""
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((DEMO / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    shard = read_shard(DEMO / "model.safetensors")
    kept = {n: t for n, t in shard.tensors.items() if ".layers." not in n or ".layers.0." in n}
    write_shard(replace(shard, tensors=kept), directory / "model.safetensors")
    return directory
