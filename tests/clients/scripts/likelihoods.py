"""The log-likelihoods of texts by transformers, on the checkpoint's dequantised weights. Ours.

Usage: likelihoods.py CHECKPOINT < texts (a JSON list); prints a JSON list of natural logarithms.
"""

import json
import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig


def log_likelihood(model: Any, tokenizer: Any, text: str) -> float:
    """Of every token after the beginning-of-text token."""
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    tokens = model.dummy_inputs["input_ids"].new_tensor([ids])
    logits = model(tokens[:, :-1]).logits.double()
    chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    return float(chosen.sum().item())


def main() -> None:
    checkpoint = sys.argv[1]
    plain = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=plain)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = json.load(sys.stdin)
    print(json.dumps([log_likelihood(model, tokenizer, text) for text in texts]))


main()
