"""`model_registry.yaml`: the hosted API's models under its names, and the demo."""

import re
from pathlib import Path
from typing import Any

import pytest

from tenuto.models.planner import gib
from tenuto.models.registry import load_registry
from tenuto.models.sizes import need_of, weights_bytes
from tests.conftest import Setup, served
from tests.models.hosted import DEMO, HOSTED, REGISTRY, pulled, put_header, shape_of

IDS = [row["id"] for row in HOSTED]


def values(key: str) -> dict[str, Any]:
    """Of the models that set it."""
    return {row["id"]: row[key] for row in HOSTED if key in row}


def test_twenty_models_and_the_demo() -> None:
    # Loading it refuses ids that are there twice.
    assert list(load_registry(REGISTRY).entries) == ["tenuto-demo", *IDS]
    assert len(IDS) == 20


@pytest.mark.parametrize("row", HOSTED, ids=IDS)
def test_source_is_the_models_repo(row: dict[str, Any]) -> None:
    repo = re.fullmatch(r"[\w.-]+/([\w.-]+)", row["source"])
    assert repo is not None
    assert repo[1].lower() in row["id"].lower()


def test_no_two_have_one_source() -> None:
    assert len(set(values("source").values())) == 20


@pytest.mark.parametrize("row", HOSTED, ids=IDS)
def test_served_context_is_within_the_architectures(row: dict[str, Any]) -> None:
    assert 8192 <= row["max_model_len"] <= shape_of(row["source"]).max_positions


@pytest.mark.parametrize("row", HOSTED, ids=IDS)
def test_16_bit_repos_alone_are_quantised_while_they_load(row: dict[str, Any]) -> None:
    in_fp8 = row["source"].lower().endswith("fp8-dynamic")
    assert row.get("quantization") == (None if in_fp8 else "fp8")


def test_system_prompts_are_refused_where_the_hosted_documentation_says_so() -> None:
    assert values("system_prompt") == dict.fromkeys(
        (
            "TheDrummer-Anubis-70B-v1-FP8-Dynamic",
            "Midnight-Miqu-70B-v1.5",
            "TheDrummer-Rocinante-12B-v1.1",
        ),
        "reject",
    )


def test_chatml_turns_of_qwen_end() -> None:
    assert values("stop_token_ids") == {name: [151645] for name in IDS if "72b" in name.lower()}


def test_every_license_is_named_or_said_to_be_unknown() -> None:
    assert list(values("license")) == IDS


def test_nothing_is_loaded_at_start_and_no_repos_code_is_run() -> None:
    assert DEMO["load"] == "eager"
    assert values("load") == values("trust_remote_code") == {}


def comments() -> dict[str, str]:
    """What stands above each entry."""
    blocks = re.findall(r"\n\n((?:  # .*\n)+)  - id: (\S+)", REGISTRY.read_text())
    return {name: text for text, name in blocks}


def test_sizes_in_the_comments_are_what_is_computed(tmp_path: Path) -> None:
    said = {name: set(re.findall(r"[\d.]+ GiB", text)) for name, text in comments().items()}
    for name, entry in pulled(tmp_path).items():
        assert entry.checkpoint is not None
        published, loaded = weights_bytes(entry.checkpoint), need_of(entry).weights_bytes
        assert said[name] == {gib(published), gib(loaded)}, name


def test_a_server_lists_those_on_its_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    put_header("TheDrummer/Rocinante-12B-v1.1")
    demo = {**DEMO, "source": str(REGISTRY.parent / DEMO["source"])}
    with served(tmp_path, Setup(models=[demo, *HOSTED], eager=(demo["id"],))) as running:
        listed = [model["id"] for model in running.client.get("/v1/models").json()["data"]]
        assert listed == ["tenuto-demo", "TheDrummer-Rocinante-12B-v1.1"]
