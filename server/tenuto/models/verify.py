"""Whether a checkpoint or a LoRA is whole, and what it is: read from its files, without torch."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenuto.engine.types import Task
from tenuto.errors import CheckpointError, quoted
from tenuto.models.checkpoint import adapter_rank

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.gguf")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")
NUMBERED = re.compile(r"(.+)-\d+-of-(\d+)\.safetensors")
# Bytes of an element; types that are not here are not measured.
BYTES = {"BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "F16": 2, "F32": 4}
FP8 = "F8_E4M3"
# Problems of one kind that are shown.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; nothing is wrong with it."""

    check: str
    detail: str


class Problem(Finding):
    """What is wrong."""


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]


Headers = dict[str, dict[str, Tensor]]


def problems(checkpoint: Path, **served: Any) -> list[Problem]:
    """Of `findings`, those that are wrong."""
    return [found for found in findings(checkpoint, **served) if isinstance(found, Problem)]


def findings(
    checkpoint: Path,
    *,
    max_model_len: int | None = None,
    chat_template: str | None = None,
    task: Task = "generate",
) -> list[Finding]:
    """Every check's result. The keywords are what the registry says of the model."""
    if (checkpoint / "adapter_config.json").is_file() and not (checkpoint / "config.json").exists():
        return [*_rank(checkpoint), *_weights(checkpoint, {})]
    config = _json(checkpoint / "config.json")
    if config is None:
        return [Problem("config", "config.json is missing, or no JSON object")]
    return [
        *_architecture(config),
        *_context(config, max_model_len),
        *_tokenizer(checkpoint),
        *_template(checkpoint, chat_template, task),
        *_weights(checkpoint, config),
    ]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _rank(adapter: Path) -> Iterator[Finding]:
    try:
        yield Finding("config", f"LoRA of rank {adapter_rank(adapter)}")
    except CheckpointError:
        yield Problem("config", "adapter_config.json names no rank `r`")


def _architecture(config: dict[str, Any]) -> Iterator[Finding]:
    names = config.get("architectures")
    if isinstance(names, list) and names:
        yield Finding("config", ", ".join(map(str, names)))
    else:
        yield Problem("config", "config.json names no `architectures`")


def _context(config: dict[str, Any], max_model_len: int | None) -> Iterator[Finding]:
    text = config.get("text_config") or config
    longest = text.get("max_position_embeddings")
    if not isinstance(longest, int):
        yield Finding("context", "config.json has no `max_position_embeddings`")
        return
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    # Other kinds have it counted in already.
    if rope.get("rope_type", rope.get("type")) in ("linear", "dynamic"):
        longest = int(longest * (rope.get("factor") or 1))
    if max_model_len is not None and max_model_len > longest:
        yield Problem("context", f"the registry's {max_model_len} tokens; the model has {longest}")
    else:
        yield Finding("context", f"{longest} tokens")


def _tokenizer(checkpoint: Path) -> Iterator[Finding]:
    names = [name for name in TOKENIZERS if (checkpoint / name).is_file()]
    names += sorted(path.name for path in checkpoint.glob("*.tiktoken"))
    if not names:
        yield Problem("tokenizer", f"none of {', '.join(TOKENIZERS)}, *.tiktoken")
    elif names[0] != "tokenizer.json":
        yield Finding("tokenizer", f"{names[0]}; only a tokenizer.json is tried out here")
    else:
        yield _loaded(checkpoint / names[0])


def _loaded(path: Path) -> Finding:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return Finding("tokenizer", "not tried out: the package tokenizers is not installed")
    try:
        count = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as error:  # the library raises nothing more exact
        return Problem("tokenizer", f"tokenizer.json cannot be loaded: {quoted(str(error))}")
    return Finding("tokenizer", f"{count} tokens")


def _template(checkpoint: Path, given: str | None, task: Task) -> Iterator[Finding]:
    settings = _json(checkpoint / "tokenizer_config.json") or {}
    if given is not None:
        yield Finding("chat template", "the registry's")
    elif (checkpoint / "chat_template.jinja").is_file():
        yield Finding("chat template", "chat_template.jinja")
    elif settings.get("chat_template"):
        yield Finding("chat template", "tokenizer_config.json")
    elif (_json(checkpoint / "chat_template.json") or {}).get("chat_template"):
        yield Finding("chat template", "chat_template.json")
    elif task == "embed":
        yield Finding("chat template", "none, and embeddings need none")
    else:
        yield Problem("chat template", "none: chat needs the registry's `chat_template`")


def _weights(checkpoint: Path, config: dict[str, Any]) -> Iterator[Finding]:
    found = list(_shards(checkpoint))
    headers: Headers = {}
    for path in found:
        try:
            headers[path.name] = _header(path)
        except ValueError as error:
            yield Problem("weights", f"{path.name}: {error}")
    missing = list(_missing(checkpoint, headers, {path.name for path in found}))
    yield from missing
    if not found:
        pickles = sorted(path.name for kind in PICKLES for path in checkpoint.glob(kind))
        others = f"; {pickles[0]} is a format that is not loaded" if pickles else ""
        yield Problem("weights", f"no safetensors files{others}")
    elif len(headers) == len(found) and not missing:
        tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
        files = "1 file" if len(found) == 1 else f"{len(found)} files"
        yield Finding("weights", f"{len(tensors)} tensors in {files}")
        yield from _scheme(config.get("quantization_config") or {}, tensors)


def _shards(checkpoint: Path) -> list[Path]:
    """What is loaded: with an index, the files that it names."""
    paths = sorted(checkpoint.glob("*.safetensors"))
    index = _json(checkpoint / INDEX)
    named = set(index["weight_map"].values()) if index and _is_map(index) else None
    return [path for path in paths if named is None or path.name in named]


def _is_map(index: dict[str, Any]) -> bool:
    names = index.get("weight_map")
    return isinstance(names, dict) and all(isinstance(name, str) for name in names.values())


def _missing(checkpoint: Path, headers: Headers, found: set[str]) -> Iterator[Problem]:
    if not (checkpoint / INDEX).exists():
        for match in filter(None, map(NUMBERED.fullmatch, found)):
            number = sum(name.startswith(f"{match[1]}-") for name in found)
            if number < int(match[2]):
                yield Problem("weights", f"{number} files of {int(match[2])} are there")
                return
        return
    index = _json(checkpoint / INDEX)
    if index is None or not _is_map(index):
        yield Problem("weights", f"{INDEX} is not an index")
        return
    for name in sorted(set(index["weight_map"].values()) - found):
        yield Problem("weights", f"{quoted(name)} is missing")
    lacking = [
        (tensor, file)
        for tensor, file in index["weight_map"].items()
        if file in headers and tensor not in headers[file]
    ]
    for tensor, file in lacking[:SHOWN]:
        yield Problem("weights", f"{file} lacks {quoted(tensor)}")


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. `ValueError` unless they fill it without a gap."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise ValueError("is a pointer of Git LFS, not the weights")
        if len(start) < 8 or length > size - 8:
            raise ValueError("is cut short, or no safetensors file")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            rows = sorted((*facts["data_offsets"], name, facts) for name, facts in header.items())
            tensors = {name: Tensor(f["dtype"], tuple(f["shape"])) for *_, name, f in rows}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("has a damaged header") from None
    end = 0
    for begin, until, name, facts in rows:
        each = BYTES.get(facts["dtype"])
        if begin != end or (each and math.prod(facts["shape"]) * each != until - begin):
            raise ValueError(f"has wrong offsets for {quoted(name)}")
        end = until
    if end != size - 8 - length:
        raise ValueError(f"is cut short: {size} bytes, and its header says {end + 8 + length}")
    return tensors


def _scheme(quantization: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Finding]:
    matrices = {name: t for name, t in tensors.items() if t.dtype == FP8 and len(t.shape) > 1}
    try:
        strategy, word = _strategy(quantization)
    except (AttributeError, TypeError):
        yield Problem("FP8", "config.json's `quantization_config` is damaged")
        return
    if not quantization and matrices:
        yield Problem("FP8", "config.json has no `quantization_config` for its FP8 weights")
    elif not quantization:
        yield Finding("FP8", "not quantised; `quantization: fp8`, or `tenuto models quantize`")
    elif strategy is None:
        yield Finding("FP8", f"another scheme: {quoted(word)}")
    elif not matrices:
        yield Problem("FP8", f"config.json says {word}; no weight is FP8")
    else:
        suffix = "_scale_inv" if "weight_block_size" in quantization else "_scale"
        wrong = list(_wrong_scales(strategy, suffix, tensors, matrices))
        yield from wrong[:SHOWN]
        if not wrong:
            yield Finding("FP8", f"{word}: {len(matrices)} matrices")


def _strategy(quantization: dict[str, Any]) -> tuple[str | tuple[int, ...] | None, str]:
    """What has a scale of its own (blocks: their shape; None: not FP8), and this in words."""
    method, groups = quantization.get("quant_method"), quantization.get("config_groups") or {}
    group: dict[str, Any] = next(iter(groups.values()), {})
    weights, activations = group.get("weights") or {}, group.get("input_activations") or {}
    if method == "fp8":
        block = quantization.get("weight_block_size")
        kind, dynamic = "tensor", quantization.get("activation_scheme") == "dynamic"
    elif method == "compressed-tensors" and quantization.get("format") == "float-quantized":
        block, kind = weights.get("block_structure"), str(weights.get("strategy"))
        dynamic = activations.get("dynamic") is True
    else:
        return None, " ".join(filter(None, (str(method), quantization.get("format"))))
    inputs = "dynamic" if dynamic else "static (not FP8-Dynamic)"
    word = f"{method}, a scale per {'block' if block else kind}, {inputs} activations"
    return tuple(block) if block else kind, word


def _wrong_scales(
    strategy: str | tuple[int, ...],
    suffix: str,
    tensors: dict[str, Tensor],
    matrices: dict[str, Tensor],
) -> Iterator[Problem]:
    for name, matrix in matrices.items():
        scale, expected = tensors.get(name + suffix), _scale_shape(strategy, matrix.shape)
        if scale is None:
            yield Problem("FP8", f"{quoted(name)} has no {suffix[1:]}")
        # One number may have any number of dimensions.
        elif scale.shape != expected and math.prod((*scale.shape, *expected)) != 1:
            yield Problem("FP8", f"{quoted(name + suffix)} is {scale.shape}, not {expected}")
    for name in tensors:
        if name.endswith(".weight" + suffix) and name.removesuffix(suffix) not in tensors:
            yield Problem("FP8", f"{quoted(name)} has no weight")


def _scale_shape(strategy: str | tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(strategy, tuple):
        sizes = zip(shape[-2:], strategy, strict=True)
        return (*shape[:-2], *(math.ceil(size / block) for size, block in sizes))
    return (*shape[:-1], 1) if strategy == "channel" else shape[:-2]
