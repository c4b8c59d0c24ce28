"""Checkpoints that live tests make for themselves: small, with random weights, always the same."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

from tests.live.conftest import DEMO, MODEL, write_registry

HIDDEN, LAYERS, RANK = 128, 3, 4
ONE, OTHER, UNCHANGED = "demo-one", "owner/demo-other", "demo-unchanged"
EMBEDDER, CONTEXT = "owner/embedder", 128


def write_extended(directory: Path) -> Path:
    """A registry of the demo model with three LoRAs, and of an encoder."""
    make_lora(directory / "one", seed=1)
    make_lora(directory / "other", seed=2)
    make_lora(directory / "unchanged", seed=3, scale=0)
    make_encoder(directory / "encoder", matryoshka_dimensions=[16, HIDDEN])
    loras = [
        {"id": ONE, "source": "./one"},
        {"id": OTHER, "source": str(directory / "other")},
        {"id": UNCHANGED, "source": "./unchanged"},
    ]
    encoder = {"id": EMBEDDER, "source": "./encoder", "task": "embed", "dtype": "float32"}
    return write_registry(
        directory / "registry.yaml",
        [{"id": MODEL, "loras": loras}, {**encoder, "max_model_len": CONTEXT}],
    )


def make_lora(directory: Path, seed: int, scale: float = 0.15) -> Path:
    """An adapter of the demo checkpoint, in peft's format. At scale 0 it changes nothing."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        module = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=random)
        tensors[f"{module}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=random) * scale
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["o_proj"],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def make_encoder(directory: Path, **config: Any) -> Path:
    """An XLM-RoBERTa of two layers over the demo's tokenizer. `config` is put into config.json."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "checkpoint")
    shape = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=130,
        initializer_range=0.3,
        pad_token_id=1,
        type_vocab_size=1,
        # vLLM reads it, and transformers leaves it out.
        position_embedding_type="absolute",
        **config,
    )
    XLMRobertaModel(shape, add_pooling_layer=False).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
