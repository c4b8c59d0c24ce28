"""The log-likelihoods of texts by transformers, on the checkpoint's dequantised weights. Ours.

Usage: likelihoods.py CHECKPOINT < texts (a JSON list); prints a JSON list of natural logarithms.
"""

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM


def log_likelihood(model: Any, tokenizer: Any, text: str) -> float:
    """Of every token after the beginning-of-text token."""
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    tokens = model.dummy_inputs["input_ids"].new_tensor([ids])
    logits = model(tokens[:, :-1]).logits.double()
    chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    return float(chosen.sum().item())


def dequantised(checkpoint: str) -> LlamaForCausalLM:
    """A plain model in float32. transformers' own dequantising keeps rounding the activations."""
    config = AutoConfig.from_pretrained(checkpoint)
    del config.quantization_config
    stored = load_file(f"{checkpoint}/model.safetensors")
    weights = {
        name: tensor.float() * stored[f"{name}_scale"].float()
        if f"{name}_scale" in stored
        else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    model = LlamaForCausalLM(config).to(torch.float32)
    model.load_state_dict(weights, strict=not config.tie_word_embeddings)
    model.tie_weights()
    return model.eval()


def main() -> None:
    checkpoint = sys.argv[1]
    model = dequantised(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = json.load(sys.stdin)
    print(json.dumps([log_likelihood(model, tokenizer, text) for text in texts]))


main()
