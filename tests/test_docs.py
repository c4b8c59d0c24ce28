"""The table of request fields in docs/api.md against the wire types and the bounds."""

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from tenuto.wire.bounds import Bounds, ranges
from tenuto.wire.requests import (
    ChatRequest,
    CompletionRequest,
    CounterRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Request,
    TokenizeRequest,
)

TEXT = (Path(__file__).parents[1] / "docs/api.md").read_text()
SECTION = TEXT.split("## Parameters")[1].split("\n## ")[0]
ROWS = {
    cells[0].strip("`"): cells
    for line in SECTION.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}
DOCUMENTED_BY_THE_HOSTED_API = re.findall(
    r"\w+",
    "n best_of presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p "
    "seed stop max_tokens min_tokens detokenize skip_special_tokens",
)


OTHERS: dict[str, type[Request]] = {
    "/embeddings": EmbeddingRequest,
    "/utils/token_counter": CounterRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def endpoints_of(name: str) -> str:
    chat, completions = name in ChatRequest.model_fields, name in CompletionRequest.model_fields
    return "both" if chat and completions else "chat" if chat else "completions"


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    fields: dict[str, FieldInfo] = {**ChatRequest.model_fields, **CompletionRequest.model_fields}
    assert ROWS.keys() == fields.keys()


def test_endpoints() -> None:
    assert {name: row[1] for name, row in ROWS.items()} == {n: endpoints_of(n) for n in ROWS}


def test_bounds() -> None:
    for name, interval in ranges(Bounds()).items():
        assert str(interval) in ROWS[name][4], name


def test_documented_parameters_are_marked() -> None:
    marked = {name for name, row in ROWS.items() if row[2] == "H"}
    assert marked - {"model", "messages", "prompt"} == set(DOCUMENTED_BY_THE_HOSTED_API)


def test_sizes() -> None:
    bounds = Bounds()
    for name, size in {
        "messages": bounds.messages,
        "prompt": bounds.prompts,
        "logit_bias": bounds.logit_bias,
        "bad_words": bounds.bad_words,
        "tools": bounds.tools,
        "stop": bounds.stop_strings,
        "stop_token_ids": bounds.token_ids,
        "chat_template_kwargs": bounds.template_kwargs,
    }.items():
        assert re.search(rf"\b{size}\b", ROWS[name][4]), name


def test_fields_of_the_other_routes() -> None:
    section = TEXT.split("## Fields of the other routes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| `(\w+)` \|", section, re.M)
    assert set(rows) == {
        (route, name)
        for route, kind in OTHERS.items()
        for name in kind.model_fields.keys() - {"model"}
    }
