"""The default registry with all its models on this host, as checkpoints that are all header.

Shapes are those of the base models' configs; the sizes that follow are extrapolated from the
parameter counts, not measured.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tenuto.models.checkpoint import cached_repo
from tenuto.models.registry import Entry, load_registry
from tests.models.test_sizes import (
    LLAMA_70B,
    MIQU_70B,
    NEMO_12B,
    QWEN_72B,
    SMALL_24B,
    Shape,
    make_model,
)

REGISTRY = Path(__file__).parents[2] / "model_registry.yaml"
DEMO, *HOSTED = yaml.safe_load(REGISTRY.read_text())["models"]
# By what the repo's name has, the first that matches.
SHAPES = {
    "euryale-v2.1": replace(LLAMA_70B, max_positions=8192),
    "magnum-v2": replace(QWEN_72B, max_positions=32768),
    "miqu": MIQU_70B,
    "70b": LLAMA_70B,
    "72b": QWEN_72B,
    "24b": SMALL_24B,
    "12b": NEMO_12B,
    # Its 80 layers differ, and 49 of them have attention: 49 equal ones with as many parameters
    # (49.9 G) and the same KV cache.
    "49b": Shape(49, 8192, 64, 8, 33536, 128256),
}


def shape_of(source: str) -> Shape:
    return next(shape for part, shape in SHAPES.items() if part in source.lower())


def pulled(directory: Path) -> dict[str, Entry]:
    """The hosted models, by id, all of them in a Hugging Face cache of their own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_CACHE", str(directory))
        for row in HOSTED:
            put_header(row["source"])
        entries = load_registry(REGISTRY).entries
    return {row["id"]: entries[row["id"]] for row in HOSTED}


def put_header(source: str) -> None:
    repo = cached_repo(source)
    make_model(repo / "snapshots" / "c0", shape_of(source), fp8="fp8" in source.lower())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0")
