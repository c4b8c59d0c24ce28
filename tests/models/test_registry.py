"""The registry file: what is refused names the model and the key, in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tenuto.engine.types import LoraSpec, Scale
from tenuto.errors import CheckpointError, ConfigError
from tenuto.models.registry import OWNED_ENGINE_ARGS, Entry, Lora, Registry, Target, load_registry
from tests.conftest import make_adapter, make_checkpoint, make_registry

ROW: dict[str, Any] = {"id": "demo", "source": "./checkpoint"}


def load(directory: Path, document: Any) -> Registry:
    make_checkpoint(directory / "checkpoint")
    path = directory / "registry.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_registry(path)


def complaint(directory: Path, document: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, document)
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix("registry.yaml: ")


ODD_ROW: dict[Any, Any] = {**ROW, 1: 2}


def with_row(**fields: Any) -> dict[str, Any]:
    return {"models": [{**ROW, **fields}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("models: [", "not valid YAML in line 1"),
        ("- a", "must hold a mapping with `models`"),
        ("", "must hold a mapping with `models`"),
        ({"models": [], "model": []}, "unknown key model"),
        ({"models": [], "defaults": ["a"]}, "`defaults` must be a mapping and `models` a list"),
        ({"models": {"a": 1}}, "`defaults` must be a mapping and `models` a list"),
        ({"models": ["demo"]}, "model 1: must be a mapping"),
        ({"models": [{"source": "./checkpoint"}]}, "model 1: key `id`: Field required"),
        (with_row(**{"1": 2}), "model 'demo': key `1`: unknown key"),
        ({"models": [ODD_ROW]}, "model 'demo': key `1`: Keys should be strings"),
        ({"models": [{"id": "demo"}]}, "model 'demo': key `source`: Field required"),
        (with_row(max_model_length=5), "model 'demo': key `max_model_length`: unknown key"),
        (with_row(directory="/"), "model 'demo': key `directory`: unknown key"),
        (with_row(max_model_len=0), "model 'demo': key `max_model_len`: Input should be greater"),
        (with_row(load="now"), "model 'demo': key `load`: Input should be 'eager' or 'on_demand'"),
        (
            with_row(gpu_memory="12GB"),
            "model 'demo': key `gpu_memory`: Value error, should be a",
        ),
        (with_row(gpu_memory="manyGiB"), "model 'demo': key `gpu_memory`: Value error"),
        (with_row(gpu_memory="infGiB"), "model 'demo': key `gpu_memory`: Value error"),
        (with_row(gpu_memory=5), "model 'demo': key `gpu_memory`: Input should be greater"),
        (
            {"defaults": {"dtype": "int4"}, "models": [ROW]},
            "model 'demo': key `dtype`: Input should be 'auto'",
        ),
        (
            with_row(sampling_defaults={"temperature": 3}),
            "model 'demo': key `sampling_defaults.SamplingDefaults.temperature`: Input should be",
        ),
        (
            with_row(sampling_defaults={"temprature": 1}),
            "model 'demo': key `sampling_defaults.SamplingDefaults.temprature`: unknown key",
        ),
        (with_row(sampling_defaults="model"), "model 'demo': key `sampling_defaults."),
        (with_row(stop_token_ids=[-1]), "model 'demo': key `stop_token_ids.0`: Input should be"),
        (with_row(tool_parser=5), "model 'demo': key `tool_parser`: Input should be a valid str"),
        (with_row(reasoning_parser=["a"]), "model 'demo': key `reasoning_parser`: Input should"),
        (with_row(source="./gone"), "model 'demo': key `source`: no checkpoint in directory"),
        (with_row(chat_template="t.jinja"), "model 'demo': key `chat_template`: no file t.jinja"),
        (
            with_row(loras=[{"id": "a", "source": "./gone"}]),
            "model 'demo': key `loras`: 'a': no adapter (adapter_config.json, "
            "adapter_model.safetensors) in directory ./gone",
        ),
        (
            with_row(loras=[{"id": "a", "source": "./checkpoint"}]),
            "model 'demo': key `loras`: 'a': no adapter",
        ),
        (with_row(loras=[{"id": "a"}]), "model 'demo': key `loras.0.source`: Field required"),
        (
            with_row(loras=[{"id": "a", "source": "o/a", "rank": 8}]),
            "model 'demo': key `loras.0.rank`: unknown key",
        ),
        (
            with_row(loras=[{"id": "demo", "source": "o/a"}]),
            "model 'demo': key `loras`: 'demo' already names 'demo'",
        ),
        (
            with_row(aliases=["a"], loras=[{"id": "a", "source": "o/a"}]),
            "model 'demo': key `loras`: 'a' already names 'demo'",
        ),
        (
            with_row(loras=[{"id": "a", "source": "o/a"}, {"id": "a", "source": "o/b"}]),
            "model 'demo': key `loras`: 'a' already names 'a'",
        ),
        (
            {"models": [{**ROW, "loras": [{"id": "a", "source": "o/a"}]}, {**ROW, "id": "a"}]},
            "model 'a': key `id`: 'a' already names 'a'",
        ),
        (
            with_row(task="embed", loras=[{"id": "a", "source": "o/a"}]),
            "model 'demo': key `loras`: needs `task: generate`",
        ),
        (with_row(replicas=2), "model 'demo': key `replicas`: Input should be"),
        (with_row(replicas={"min": -1}), "model 'demo': key `replicas.min`: Input should be"),
        (with_row(replicas={"max": 0}), "model 'demo': key `replicas.max`: Input should be"),
        (with_row(replicas={"max": "many"}), "model 'demo': key `replicas.max`: Input should be"),
        (
            with_row(replicas={"target_ongoing_requests": 0}),
            "model 'demo': key `replicas.target_ongoing_requests`: Input should be",
        ),
        (
            with_row(replicas={"min": 3, "max": 2}),
            "model 'demo': key `replicas`: Value error, min should be at most max, 2",
        ),
        (with_row(replicas={"min": 2}), "model 'demo': key `replicas`: Value error, min should be"),
        (with_row(replicas={"most": 2}), "model 'demo': key `replicas.most`: unknown key"),
        (
            {"defaults": {"replicas": {"max": 0}}, "models": [ROW]},
            "model 'demo': key `replicas.max`: Input should be",
        ),
        (with_row(task="rerank"), "model 'demo': key `task`: Input should be 'generate' or"),
        (
            {"models": [ROW, ROW]},
            "model 'demo': key `id`: 'demo' already names 'demo'",
        ),
        (
            {"models": [ROW, {**ROW, "id": "b", "aliases": ["demo"]}]},
            "model 'b': key `aliases`: 'demo' already names 'demo'",
        ),
    ],
)
def test_refused(tmp_path: Path, document: Any, message: str) -> None:
    assert complaint(tmp_path, document).startswith(message)


@pytest.mark.parametrize(
    "key", sorted((Entry.model_fields | Lora.model_fields).keys() - {"directory"})
)
def test_every_key_is_documented(key: str) -> None:
    operations = Path(__file__).parents[2] / "docs" / "operations.md"
    assert f"`{key}`" in operations.read_text()


@pytest.mark.parametrize("text", ['{"temperature": 3}', '{"top_k": "many"}', "[1]", "{"])
def test_checkpoint_whose_defaults_no_request_could_have(tmp_path: Path, text: str) -> None:
    (make_checkpoint(tmp_path / "checkpoint") / "generation_config.json").write_text(text)
    message = complaint(tmp_path, with_row(sampling_defaults="checkpoint"))
    assert message.startswith("model 'demo': key `sampling_defaults`: the checkpoint's")
    load(tmp_path, with_row())


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_registry(tmp_path / "gone.yaml")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_bytes(b"models: \xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_registry(path)


@pytest.mark.parametrize("name", OWNED_ENGINE_ARGS)
def test_engine_arguments_that_the_server_owns(tmp_path: Path, name: str) -> None:
    message = complaint(tmp_path, with_row(engine_args={name: 1}))
    assert message == (
        f"model 'demo': key `engine_args.{name}`: use instead: {OWNED_ENGINE_ARGS[name]}"
    )


def test_engine_arguments_that_vllm_does_not_have(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(with_row(engine_args={"max_num_seqs": 1, "max_seqs": 1})))
    with pytest.raises(ConfigError) as caught:
        load_registry(path, {"max_num_seqs"})
    assert caught.value.message == (
        "registry.yaml: model 'demo': key `engine_args.max_seqs`: vLLM has no such argument"
    )
    assert load_registry(path).entries["demo"].engine_args["max_seqs"] == 1


def test_defaults_are_for_all_and_an_entry_wins(tmp_path: Path) -> None:
    registry = load(
        tmp_path,
        {
            "defaults": {"gpu_memory": "1.5GiB", "dtype": "float32"},
            "models": [ROW, {**ROW, "id": "b", "dtype": "float16"}],
        },
    )
    first, second = registry.entries.values()
    assert (first.gpu_memory, first.dtype) == (3 << 29, "float32")
    assert (second.gpu_memory, second.dtype) == (3 << 29, "float16")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (1 << 20, 1 << 20),
        ("2097152B", 2 << 20),
        ("2048KiB", 2 << 20),
        ("2 MiB", 2 << 20),
        ("0.5GiB", 1 << 29),
        ("2TiB", 2 << 40),
    ],
)
def test_gpu_memory(tmp_path: Path, text: object, num_bytes: int) -> None:
    registry = load(tmp_path, with_row(gpu_memory=text))
    assert registry.entries["demo"].gpu_memory == num_bytes


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, Scale(0, 1, 64, 300)),
        ({"load": "eager"}, Scale(1, 1, 64, 300)),
        ({"load": "eager", "replicas": {"min": 0}}, Scale(0, 1, 64, 300)),
        ({"replicas": {"min": 2, "max": 5}}, Scale(2, 5, 64, 300)),
        (
            {"replicas": {"max": 5, "target_ongoing_requests": 8}, "idle_ttl": 2.5},
            Scale(0, 5, 8, 2.5),
        ),
    ],
)
def test_replicas_in_a_cluster(tmp_path: Path, fields: dict[str, Any], scale: Scale) -> None:
    assert load(tmp_path, with_row(**fields)).entries["demo"].scale() == scale


def test_replicas_of_an_entry_are_its_own_alone(tmp_path: Path) -> None:
    document = {
        "defaults": {"replicas": {"max": 4, "target_ongoing_requests": 9}},
        "models": [ROW, {**ROW, "id": "b", "replicas": {"max": 2}}],
    }
    first, second = load(tmp_path, document).entries.values()
    assert first.scale() == Scale(0, 4, 9)
    # As with every key: an entry's value stands in the place of the default's.
    assert second.scale() == Scale(0, 2, 64)


def test_models_are_found_by_id_and_alias(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, [{"id": "owner/demo", "aliases": ["a", "b/c"]}])
    target = Target(registry.entries["owner/demo"])
    assert [registry.find(name) for name in ("owner/demo", "a", "b/c")] == [target] * 3
    assert registry.find("demo") is None


def test_present_are_those_on_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    registry = make_registry(tmp_path, [{"id": "demo"}, {"id": "far", "source": "owner/far"}])
    assert [entry.id for entry in registry.present()] == ["demo"]


def test_spec_is_resolved_to_this_host(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    registry = make_registry(
        tmp_path,
        [
            {
                "id": "demo",
                "chat_template": "t.jinja",
                "gpu_memory": "2MiB",
                "max_model_len": 64,
                "tensor_parallel_size": 2,
                "engine_args": {"max_num_seqs": 4},
            }
        ],
    )
    spec = registry.entries["demo"].spec()
    assert spec.checkpoint == tmp_path / "checkpoint"
    assert spec.chat_template == "{{ messages }}"
    assert (spec.kv_cache_memory_bytes, spec.max_model_len) == (2 << 20, 64)
    assert spec.tensor_parallel_size == 2
    assert spec.engine_args == {"max_num_seqs": 4}


@pytest.mark.parametrize(
    ("source", "shown"), [("./checkpoint", "demo"), ("owner/name", "owner/name")]
)
def test_source_id_is_never_a_path(tmp_path: Path, source: str, shown: str) -> None:
    lora = {"id": "lora", "source": str(make_adapter(tmp_path / "lora"))}
    registry = make_registry(tmp_path, [{"id": "demo", "source": source, "loras": [lora]}])
    assert [target.source_id for target in registry.targets()] == [shown, "lora"]


def test_a_lora_is_found_beside_its_base(tmp_path: Path) -> None:
    make_adapter(tmp_path / "pirate")
    rows = [{"id": "owner/pirate", "source": "./pirate", "license": "MIT"}]
    registry = make_registry(
        tmp_path, [{"id": "demo", "aliases": ["d"], "revision": "v1", "loras": rows}, {"id": "b"}]
    )
    assert [target.id for target in registry.targets()] == ["demo", "owner/pirate", "b"]
    found = registry.find("owner/pirate")
    assert found is not None
    assert found.entry is registry.entries["demo"]
    assert (found.license, found.revision, found.is_present) == ("MIT", None, True)


def test_a_lora_needs_its_base_on_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    make_adapter(tmp_path / "near")
    rows = [{"id": "near", "source": "./near"}, {"id": "far", "source": "owner/far"}]
    registry = make_registry(tmp_path, [{"id": "demo", "source": "owner/demo", "loras": rows}])
    assert [target.is_present for target in registry.targets()] == [False, False, False]
    make_adapter(tmp_path / "hub" / "models--owner--far" / "snapshots" / "c0")
    refs = tmp_path / "hub" / "models--owner--far" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c0")
    registry = make_registry(tmp_path, [{"id": "demo", "loras": rows}])
    assert [target.is_present for target in registry.targets()] == [True, True, True]


def test_the_spec_holds_the_loras_that_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    near = make_adapter(tmp_path / "near", rank=12)
    rows = [{"id": "far", "source": "owner/far"}, {"id": "near", "source": "./near"}]
    registry = make_registry(tmp_path, [{"id": "demo", "loras": rows}])
    assert registry.entries["demo"].spec().loras == (LoraSpec("near", near, 12),)


@pytest.mark.parametrize(
    ("config", "rank"),
    [('{"r": 4}', 4), ('{"r": 4, "rank_pattern": {"q_proj": 9}}', 9), ("{}", 0), ("[]", 0)],
)
def test_rank_of_a_lora(tmp_path: Path, config: str, rank: int) -> None:
    (make_adapter(tmp_path / "lora") / "adapter_config.json").write_text(config)
    lora = {"id": "lora", "source": "./lora"}
    entry = make_registry(tmp_path, [{"id": "demo", "loras": [lora]}]).entries["demo"]
    if rank:
        assert entry.spec().loras[0].rank == rank
        return
    with pytest.raises(CheckpointError, match="names no rank"):
        entry.spec()
