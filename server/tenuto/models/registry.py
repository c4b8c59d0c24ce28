"""`model_registry.yaml`: which models there are, and how each is served."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tenuto.engine.types import EngineSpec, LoraSpec, Scale, Task
from tenuto.errors import ConfigError, quoted
from tenuto.models.checkpoint import (
    adapter_rank,
    generation_defaults,
    is_directory_source,
    locate,
    locate_adapter,
)

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SIZE = re.compile(rf"(\d{{1,15}}(?:\.\d+)?) ?({'|'.join(UNITS)})")
# Fields of vLLM's that the server sets itself, and the registry key to use in their place.
OWNED_ENGINE_ARGS = {
    "model": "source",
    "runner": "task",
    "tokenizer": "source",
    "served_model_name": "id",
    "revision": "revision",
    "max_model_len": "max_model_len",
    "quantization": "quantization",
    "dtype": "dtype",
    "kv_cache_dtype": "kv_cache_dtype",
    "kv_cache_memory_bytes": "gpu_memory",
    "tensor_parallel_size": "tensor_parallel_size",
    "pipeline_parallel_size": "pipeline_parallel_size",
    "trust_remote_code": "trust_remote_code",
    "enable_lora": "loras",
    "max_loras": "loras",
    "max_lora_rank": "loras",
    "scheduling_policy": "none: it is always priority",
    "shutdown_timeout": "the setting drain_s",
    "disable_log_stats": "none: the server has its own metrics",
    "enable_log_requests": "none: prompts are never logged",
}


def bytes_of(text: Any) -> Any:
    """`12GiB` as bytes; whole numbers are bytes already."""
    if not isinstance(text, str):
        return text
    size = SIZE.fullmatch(text)
    if size is None:
        raise ValueError("should be a size such as 12GiB")
    return int(float(size[1]) * UNITS[size[2]])


Bytes = Annotated[int, BeforeValidator(bytes_of)]
TokenId = Annotated[int, Field(ge=0)]


class SamplingDefaults(BaseModel):
    """Used where a request says nothing; what is unset here stays the API's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)


class Replicas(BaseModel):
    """In a cluster: how many engines a model has there, as its requests want."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int | None = Field(None, ge=0, description="else 1 with `load: eager`, and 0 without")
    max: int = Field(1, ge=1)
    target_ongoing_requests: int = Field(64, ge=1, description="of each, before another is started")

    @model_validator(mode="after")
    def _judge(self) -> "Replicas":
        if self.min is not None and self.min > self.max:
            raise ValueError(f"min should be at most max, {self.max}")
        return self


class Served(BaseModel):
    """How a model is served; in `defaults:` for all, in an entry for one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantization: str | None = Field(None, description="vLLM's name; normally read from the model")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_dtype: str = Field("auto", description="`fp8` halves the KV cache")
    max_model_len: int | None = Field(None, ge=1, description="context in tokens")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share each layer")
    pipeline_parallel_size: int = Field(1, ge=1, description="GPU groups that share the layers")
    gpu_memory: Bytes | None = Field(None, ge=1 << 20, description="KV-cache budget, e.g. 12GiB")
    chat_template: str | None = Field(None, description="a Jinja file beside the registry")
    system_prompt: Literal["native", "merge", "reject"] = "native"
    load: Literal["eager", "on_demand"] = "on_demand"
    pinned: bool = Field(False, description="never unloaded to make room")
    idle_ttl: float | None = Field(
        None, gt=0, description="seconds unused until it is unloaded, also from its sleep"
    )
    sleep_level: Literal[0, 1, 2] = Field(
        1, description="1: weights wait in host memory; 2: they are read again; 0: never sleeps"
    )
    wait: Literal["silent", "stream"] = Field(
        "silent", description="`stream`: streams begin with comments while the model loads"
    )
    replicas: Replicas = Field(default=Replicas(), description="in a cluster alone")
    license: str | None = None
    trust_remote_code: bool = False
    tool_parser: str | None = Field(None, description="vLLM's name; for tool_choice auto")
    reasoning_parser: str | None = Field(None, description="vLLM's name; splits off reasoning")
    stop_token_ids: tuple[TokenId, ...] = Field((), description="ends of a turn beside the model's")
    sampling_defaults: SamplingDefaults | Literal["checkpoint"] = Field(
        default=SamplingDefaults(), description="for requests that say nothing"
    )
    engine_args: dict[str, Any] = Field(default_factory=dict, description="vLLM's, by its names")


class Lora(BaseModel):
    """An adapter in peft's format: served by its entry's engine, under an id of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    source: str = Field(min_length=1, description="as the entry's: a repo id, or a directory")
    license: str | None = None


class Entry(Served):
    """One model. `directory` is where the registry file lies; relative paths start there."""

    id: str = Field(min_length=1, description="the name that clients use; may hold `/`")
    source: str = Field(min_length=1, description="a repo id, or a directory (./…, /…, ~/…)")
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    task: Task = Field("generate", description="`embed`: an embedding model")
    loras: tuple[Lora, ...] = Field((), description="adapters, each listed as a model")
    directory: Path = Field(exclude=True)

    @cached_property
    def checkpoint(self) -> Path | None:
        """The checkpoint's directory, or None when it is not on this host."""
        return locate(self.source, self.revision, self.directory)

    @cached_property
    def adapters(self) -> dict[str, Path]:
        """The directories of the LoRAs that are on this host, by their ids."""
        found = {lora.id: locate_adapter(lora.source, self.directory) for lora in self.loras}
        return {name: adapter for name, adapter in found.items() if adapter is not None}

    @cached_property
    def template_text(self) -> str | None:
        if self.chat_template is None:
            return None
        return (self.directory / self.chat_template).read_text()

    @cached_property
    def request_defaults(self) -> dict[str, Any]:
        """Of `sampling_defaults`, or of the checkpoint's generation_config.json when asked for."""
        if isinstance(self.sampling_defaults, SamplingDefaults):
            return self.sampling_defaults.model_dump(exclude_none=True)
        assert self.checkpoint is not None
        found = generation_defaults(self.checkpoint, SamplingDefaults.model_fields)
        return SamplingDefaults.model_validate(found).model_dump(exclude_none=True)

    def same(self, other: "Entry | None") -> bool:
        """Also of what lies on this host."""

        def found(entry: Entry) -> tuple[Any, ...]:
            return entry.checkpoint, entry.adapters, entry.template_text

        return other is not None and self == other and found(self) == found(other)

    def scale(self) -> Scale:
        fewest = self.replicas.min
        if fewest is None:
            fewest = 1 if self.load == "eager" else 0
        return Scale(
            fewest,
            self.replicas.max,
            self.replicas.target_ongoing_requests,
            **({} if self.idle_ttl is None else {"idle_s": self.idle_ttl}),
        )

    def spec(self) -> EngineSpec:
        assert self.checkpoint is not None
        return EngineSpec(
            model_id=self.id,
            checkpoint=self.checkpoint,
            task=self.task,
            max_model_len=self.max_model_len,
            quantization=self.quantization,
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_cache_memory_bytes=self.gpu_memory,
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            chat_template=self.template_text,
            trust_remote_code=self.trust_remote_code,
            tool_parser=self.tool_parser,
            reasoning_parser=self.reasoning_parser,
            loras=tuple(LoraSpec(n, path, adapter_rank(path)) for n, path in self.adapters.items()),
            engine_args=self.engine_args,
        )


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for: a model, or one of its LoRAs."""

    entry: Entry
    lora: Lora | None = None

    @property
    def id(self) -> str:
        return (self.lora or self.entry).id

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *(self.entry.aliases if self.lora is None else ()))

    @property
    def source(self) -> str:
        return (self.lora or self.entry).source

    @property
    def source_id(self) -> str:
        """What the token counter names: never a path of this host."""
        return self.id if is_directory_source(self.source) else self.source

    @property
    def license(self) -> str | None:
        return (self.lora or self.entry).license

    @property
    def revision(self) -> str | None:
        return self.entry.revision if self.lora is None else None

    @property
    def is_present(self) -> bool:
        """All that it needs is on this host: for a LoRA its base too."""
        adapted = self.lora is None or self.lora.id in self.entry.adapters
        return adapted and self.entry.checkpoint is not None


class Registry:
    """All entries, by id and alias, and their LoRAs."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = {entry.id: entry for entry in entries}
        self._by_name = {name: target for target in self.targets() for name in target.names}

    def adopt(self, other: "Registry") -> None:
        """Becomes the other, with its own objects for the entries that are the same in both."""
        known = self.entries
        kept = {name for name, entry in other.entries.items() if entry.same(known.get(name))}
        self.entries = {
            name: known[name] if name in kept else entry for name, entry in other.entries.items()
        }
        self._by_name = {name: target for target in self.targets() for name in target.names}

    def find(self, name: str) -> Target | None:
        return self._by_name.get(name)

    def targets(self) -> Iterator[Target]:
        """Each model, followed by its LoRAs."""
        for entry in self.entries.values():
            yield Target(entry)
            yield from (Target(entry, lora) for lora in entry.loras)

    def present(self) -> list[Entry]:
        """The models whose checkpoint is on this host."""
        return [entry for entry in self.entries.values() if entry.checkpoint is not None]


def load_registry(path: Path, engine_arguments: Collection[str] | None = None) -> Registry:
    """`engine_arguments` are the names that vLLM knows; None takes any.

    Errors: `ConfigError`, one line that names the model and the key.
    """
    document = _document(path)
    unknown = document.keys() - {"defaults", "models"}
    if unknown:
        raise ConfigError(f"{path.name}: unknown key {quoted(min(unknown))}")
    defaults = document.get("defaults") or {}
    rows = document.get("models") or []
    if not isinstance(rows, list) or not isinstance(defaults, dict):
        raise ConfigError(f"{path.name}: `defaults` must be a mapping and `models` a list")
    entries = [_entry(path, defaults, row, position) for position, row in enumerate(rows)]
    for entry in entries:
        _judge_engine_args(f"{path.name}: model {entry.id!r}", entry, engine_arguments)
    _refuse_duplicates(path, entries)
    return Registry(entries)


def chosen_models(registry: Registry, models: str | None) -> tuple[str, ...]:
    """The ids to load. Errors: `ConfigError` for one that is unknown or not on this host."""
    if models is None:
        return tuple(entry.id for entry in registry.present() if entry.load == "eager")
    ids = []
    for name in filter(None, (part.strip() for part in models.split(","))):
        target = registry.find(name)
        if target is None:
            known = ", ".join(registry.entries)
            raise ConfigError(f"--models: the registry has no {quoted(name)!r}; it has {known}")
        # A LoRA's id loads its base.
        entry = target.entry
        if entry.checkpoint is None:
            raise ConfigError(
                f"--models: {entry.id}: its checkpoint is not on this host: run "
                f"`tenuto models pull {entry.id}`"
            )
        ids.append(entry.id)
    return tuple(dict.fromkeys(ids))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path.name}: not valid YAML{where}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name}: must hold a mapping with `models`")
    return document


def _entry(path: Path, defaults: dict[str, Any], row: Any, position: int) -> Entry:
    name = row.get("id") if isinstance(row, dict) else None
    where = f"{path.name}: model {quoted(name)!r}" if name else f"{path.name}: model {position + 1}"
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: must be a mapping")
    if "directory" in row:
        raise ConfigError(f"{where}: key `directory`: unknown key")
    try:
        entry = Entry.model_validate(defaults | row | {"directory": path.resolve().parent})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: key `{quoted(key)}`: unknown key") from None
        raise ConfigError(
            f"{where}: key `{key}`: {detail['msg']}, got {quoted(detail['input'])}"
        ) from None
    _judge_files(where, entry)
    _judge_defaults(where, entry)
    return entry


def _judge_files(where: str, entry: Entry) -> None:
    if is_directory_source(entry.source) and entry.checkpoint is None:
        raise ConfigError(f"{where}: key `source`: no checkpoint in directory {entry.source}")
    if entry.loras and entry.task != "generate":
        raise ConfigError(f"{where}: key `loras`: needs `task: generate`")
    for lora in entry.loras:
        if is_directory_source(lora.source) and lora.id not in entry.adapters:
            raise ConfigError(
                f"{where}: key `loras`: {quoted(lora.id)!r}: no adapter (adapter_config.json, "
                f"adapter_model.safetensors) in directory {lora.source}"
            )
    template = entry.chat_template
    if template is not None and not (entry.directory / template).is_file():
        raise ConfigError(f"{where}: key `chat_template`: no file {template}")


def _judge_defaults(where: str, entry: Entry) -> None:
    try:
        dict(entry.request_defaults if entry.checkpoint is not None else {})
    except (ValueError, AttributeError):
        raise ConfigError(
            f"{where}: key `sampling_defaults`: the checkpoint's generation_config.json has "
            "values that no request could have"
        ) from None


def _judge_engine_args(where: str, entry: Entry, known: Collection[str] | None) -> None:
    for name in entry.engine_args:
        if name in OWNED_ENGINE_ARGS:
            raise ConfigError(
                f"{where}: key `engine_args.{name}`: use instead: {OWNED_ENGINE_ARGS[name]}"
            )
        if known is not None and name not in known:
            raise ConfigError(
                f"{where}: key `engine_args.{quoted(name)}`: vLLM has no such argument"
            )


def _refuse_duplicates(path: Path, entries: list[Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        names = [("id", entry.id), *(("aliases", alias) for alias in entry.aliases)]
        names += (("loras", lora.id) for lora in entry.loras)
        for key, name in names:
            if name in seen:
                raise ConfigError(
                    f"{path.name}: model {entry.id!r}: key `{key}`: {name!r} already names "
                    f"{seen[name]!r}"
                )
            seen[name] = name if key == "loras" else entry.id
