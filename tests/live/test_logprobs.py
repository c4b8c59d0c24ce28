"""Log-probabilities: in every shape, and always the raw model's."""

import json
from functools import cache
from itertools import takewhile
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.live.conftest import DEMO, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS, HELLO
from tests.live.ways import (
    CHAT,
    CHAT_STREAMED,
    COMPLETIONS,
    COMPLETIONS_STREAMED,
    Way,
    chunks_of,
    each_way,
)

pytestmark = pytest.mark.live

TEXT = f"{HELLO}\n{ANSWERS[HELLO]}"
# Of which the model knows nothing by heart.
STRANGE = "The blue horse answers seven short questions, and the server sleeps."
each_completions = pytest.mark.parametrize("way", [COMPLETIONS, COMPLETIONS_STREAMED], ids=str)
each_chat = pytest.mark.parametrize("way", [CHAT, CHAT_STREAMED], ids=str)


@each_way
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.3, "seed": 1},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 2, "frequency_penalty": 1},
        {"logit_bias": "others"},
        {"top_k": 1, "min_p": 0.5, "temperature": 2},
    ],
    ids=str,
)
def test_values_are_the_raw_models(live: LiveServer, way: Way, changes: dict[str, Any]) -> None:
    """The same for the same tokens, whatever the other parameters make of them."""
    plain = way.ask(live, HELLO, logprobs=2, temperature=0).only
    if changes.get("logit_bias"):
        others = sorted({*range(50, 500)} - {*plain.token_ids})
        changes = {"logit_bias": dict.fromkeys(map(str, others), -5)}
    forced = {"guided_choice": [plain.text], "temperature": 0, **changes}
    changed = way.ask(live, HELLO, logprobs=2, **forced).only
    pairs = zip(plain.token_ids, changed.token_ids, strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    assert shared > 5
    assert changed.logprobs[:shared] == pytest.approx(plain.logprobs[:shared], abs=0.02)


@each_chat
@pytest.mark.parametrize("top", [0, 3])
def test_chat_entries(live: LiveServer, way: Way, top: int) -> None:
    entries = chat_entries(live, way, top)
    assert b"".join(bytes(entry["bytes"]) for entry in entries[:-1]).decode() == ANSWERS[HELLO]
    for entry in entries:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == top
        values = [alternative["logprob"] for alternative in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        if top:
            # Greedy, so the token is the likeliest one.
            assert entry["top_logprobs"][0] == {k: entry[k] for k in ("token", "logprob", "bytes")}


@each_completions
@pytest.mark.parametrize("top", [0, 3])
def test_completions_entries(live: LiveServer, way: Way, top: int) -> None:
    parts = completions_parts(live, way, HELLO, logprobs=top, max_tokens=8)
    text = "".join(part["text"] for part in parts)
    entries = joined(parts)
    assert "".join(entries["tokens"]) == text
    assert entries["text_offset"] == offsets(entries["tokens"])
    assert len(entries["tokens"]) == len(entries["token_logprobs"]) == 8
    for token, value, best in zip(
        entries["tokens"], entries["token_logprobs"], entries["top_logprobs"], strict=True
    ):
        assert best is None if top == 0 else best[token] == value == max(best.values())
        assert best is None or len(best) == top


@each_completions
@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("top", [0, 2])
def test_echo_has_the_prompts_too(live: LiveServer, way: Way, max_tokens: int, top: int) -> None:
    parts = completions_parts(live, way, TEXT, echo=True, logprobs=top, max_tokens=max_tokens)
    entries, expected = joined(parts), prompt_values(live, TEXT)
    length = len(expected)
    assert entries["token_logprobs"][0] is None
    assert entries["token_logprobs"][1:length] == pytest.approx(expected[1:], abs=0.02)
    assert len(entries["tokens"]) == length + max_tokens
    assert "".join(part["text"] for part in parts).startswith(TEXT)
    assert entries["text_offset"] == offsets(entries["tokens"])
    assert all((best is None) == (top == 0) for best in entries["top_logprobs"][1:])


@pytest.mark.parametrize("way", [CHAT, COMPLETIONS], ids=str)
@pytest.mark.parametrize("top", [0, 2])
def test_prompt_logprobs(live: LiveServer, way: Way, top: int) -> None:
    ids, entries = prompt_entries(live, way, TEXT, prompt_logprobs=top)
    assert entries[0] is None
    assert len(entries) == len(ids)
    for token_id, entry in zip(ids[1:], entries[1:], strict=True):
        assert entry[str(token_id)].keys() == {"logprob", "decoded_token"}
        assert max(1, top) <= len(entry) <= top + 1


@pytest.mark.parametrize("text", [TEXT, STRANGE], ids=["known", "strange"])
def test_values_are_those_of_the_weights(live: LiveServer, text: str) -> None:
    """Computed by transformers, in full precision; vLLM rounds what flows between the layers."""
    ids, entries = prompt_entries(live, COMPLETIONS, text, prompt_logprobs=0)
    with torch.no_grad():
        logits = reference()(input_ids=torch.tensor([ids])).logits[0]
    values = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = [
        entry[str(token)]["logprob"] for token, entry in zip(ids[1:], entries[1:], strict=True)
    ]
    errors = (torch.tensor(found) - values).abs()
    assert errors.mean() < 0.4, errors
    assert errors.max() < 1, errors
    assert values.min() < -5


def test_temperature_is_seen_in_what_is_said_alone(live: LiveServer) -> None:
    """A check of the checks above: the values of a random answer are far from certain ones."""
    random = COMPLETIONS.ask(live, COLOURS, temperature=1.5, seed=5, logprobs=0).only
    greedy = COMPLETIONS.ask(live, COLOURS, temperature=0, logprobs=0).only
    assert random.cumulative < greedy.cumulative - 2


def chat_entries(live: LiveServer, way: Way, top: int) -> list[dict[str, Any]]:
    body = {"model": "demo", **way.body(HELLO, logprobs=top, temperature=0)}
    response = live.client.post(way.path, json=body)
    parts = chunks_of(response) if way.stream else [response.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    return [entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", ())]


def completions_parts(
    live: LiveServer, way: Way, prompt: str, **fields: Any
) -> list[dict[str, Any]]:
    body = {"model": "demo", **way.body(prompt, temperature=0, **fields)}
    response = live.client.post(way.path, json=body)
    assert response.status_code == 200, response.text
    parts = chunks_of(response) if way.stream else [response.json()]
    return [choice for part in parts for choice in part["choices"]]


def joined(parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    entries = [part["logprobs"] for part in parts if part["logprobs"]]
    return {name: [value for entry in entries for value in entry[name]] for name in names}


def offsets(tokens: list[str]) -> list[int]:
    return [len("".join(tokens[:position])) for position in range(len(tokens))]


def prompt_entries(
    live: LiveServer, way: Way, text: str, **fields: Any
) -> tuple[list[int], list[Any]]:
    """The prompt's tokens and their entries."""
    body = {"model": "demo", **way.body(text), "max_tokens": 1, "return_token_ids": True, **fields}
    answer = live.client.post(way.path, json=body).json()
    holder = answer if way == CHAT else answer["choices"][0]
    return holder["prompt_token_ids"], holder["prompt_logprobs"]


def prompt_values(live: LiveServer, text: str) -> list[float]:
    ids, entries = prompt_entries(live, COMPLETIONS, text, prompt_logprobs=0)
    found = zip(ids[1:], entries[1:], strict=True)
    return [0.0, *(entry[str(token)]["logprob"] for token, entry in found)]


@cache
def reference() -> Any:
    """The demo model with its weights in full precision."""
    stored = load_file(DEMO / "checkpoint" / "model.safetensors")
    config = json.loads((DEMO / "checkpoint" / "config.json").read_bytes())
    del config["quantization_config"]
    weights = {
        name: tensor.float() * stored.get(f"{name}_scale", torch.ones(1)).float()
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    model = LlamaForCausalLM(LlamaConfig(**config)).float().eval()
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model
