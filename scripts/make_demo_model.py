"""Train the demo checkpoint `tenuto-demo`, or rewrite it in the other FP8 format.

python scripts/make_demo_model.py [--out DIR]
python scripts/make_demo_model.py --from-checkpoint SRC --format fp8 --out DIR

Runs in the server's environment: torch, transformers, tokenizers, safetensors, tqdm.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tenuto.engine.fp8 import channelwise

if TYPE_CHECKING:
    from scripts import demo_lessons as lessons
else:
    import demo_lessons as lessons

DEMO = Path(__file__).resolve().parents[1] / "server" / "tenuto" / "demo"
STEPS = 600
BATCH = 32
PEAK_LR = 0.012
MAX_PENALTY = 1.3
FP8_MAX = 448.0
# Matrices that vLLM loads as one, with room for only one scale in the format `fp8`.
FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gu", "up_proj": "gu"}

Tensors = dict[str, torch.Tensor]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    bos, *eos = tokenizer.convert_tokens_to_ids(
        [lessons.BOS, lessons.END_OF_TURN, lessons.END_OF_TEXT]
    )
    config = LlamaConfig(
        vocab_size=lessons.VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=lessons.CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = functools.partial(rounded_linear, module)
    return model


def rounded_linear(linear: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Compute as the stored model will: FP8 weights per channel, FP8 activations per token."""
    return F.linear(rounded(inputs), rounded(linear.weight))


def rounded(exact: torch.Tensor) -> torch.Tensor:
    """Round each row to FP8, and let the gradient pass as if nothing had happened."""
    values, scale = quantised(exact.detach(), exact.detach().abs().amax(dim=-1, keepdim=True))
    return exact + (values.float() * scale - exact.detach())


def quantised(weight: torch.Tensor, peak: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (peak / FP8_MAX).clamp(min=1e-12)
    return (weight / scale).to(torch.float8_e4m3fn), scale


def collate(examples: list[lessons.Example]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.zeros(len(examples), max(map(len, examples)), dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    for row, example in enumerate(examples):
        tokens[row, : len(example)] = torch.tensor(example.prompt + example.answer)
        labels[row, len(example.prompt) : len(example)] = torch.tensor(example.answer)
    return tokens[:, :-1], labels[:, 1:]


def batches(teacher: lessons.Teacher) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of examples of similar length, which wastes little on padding."""
    while True:
        drawn = sorted((teacher.example() for _ in range(8 * BATCH)), key=len)
        groups = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]
        teacher.rng.shuffle(groups)
        yield from map(collate, groups)


def penalised(
    logits: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Apply a random repetition_penalty to every other row, so that answers withstand it."""
    width = tokens.shape[1]
    first_seen = torch.full((len(tokens), logits.shape[-1]), width)
    first_seen.scatter_reduce_(1, tokens, torch.arange(width).expand_as(tokens), "amin")
    seen = first_seen[rows] <= columns[:, None]
    penalty = torch.empty(len(tokens), 1).uniform_(1.0, MAX_PENALTY)
    penalty[::2] = 1.0
    factor = torch.where(logits > 0, 1 / penalty[rows], penalty[rows])
    return torch.where(seen, logits * factor, logits)


def train(model: LlamaForCausalLM, teacher: lessons.Teacher, steps: int) -> None:
    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 40) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / steps) ** 2)

    betas = (0.9, 0.98)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=betas, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    stream = batches(teacher)
    for _ in (bar := tqdm(range(steps), desc="training", mininterval=1.0)):
        tokens, labels = next(stream)
        rows, columns = torch.nonzero(labels >= 0, as_tuple=True)
        hidden = model.model(input_ids=tokens).last_hidden_state[rows, columns]
        logits = penalised(model.lm_head(hidden), tokens, rows, columns)
        loss = F.cross_entropy(logits, labels[rows, columns])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def recalled(model: LlamaForCausalLM, teacher: lessons.Teacher) -> list[str]:
    """The questions whose every token of the answer is the model's first choice."""
    known = []
    for question, answer in teacher.pairs:
        tokens, labels = collate([teacher.chat([{"role": "user", "content": question}], answer)])
        with torch.no_grad():
            choices = model(input_ids=tokens).logits.argmax(dim=-1)
        if bool(((choices == labels) | (labels < 0)).all()):
            known.append(question)
    return known


def per_channel(model: LlamaForCausalLM) -> Tensors:
    """The model's tensors as they are stored: FP8-Dynamic, embeddings and norms in bfloat16."""
    stored: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("_proj.weight"):
            peak = tensor.abs().amax(dim=1, keepdim=True)
            stored[name], stored[f"{name}_scale"] = quantised(tensor, peak)
        elif name != "lm_head.weight":
            stored[name] = tensor.to(torch.bfloat16)
    return stored


def per_tensor(stored: Tensors) -> Tensors:
    """The same with one scale per matrix, shared by those that are loaded as one."""
    exact = {
        name: stored[name].float() * stored[f"{name}_scale"]
        for name in stored
        if f"{name}_scale" in stored
    }
    peaks: Tensors = {}
    for name, weight in exact.items():
        group = fused_group(name)
        peaks[group] = torch.maximum(weight.abs().amax(), peaks.get(group, torch.tensor(0.0)))
    rewritten = {name: tensor for name, tensor in stored.items() if "_proj." not in name}
    for name, weight in exact.items():
        rewritten[name], rewritten[f"{name}_scale"] = quantised(weight, peaks[fused_group(name)])
    return rewritten


def fused_group(name: str) -> str:
    layer, projection, _ = name.rsplit(".", 2)
    return f"{layer}.{FUSED.get(projection, projection)}"


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    tokenizer.save_pretrained(out)
    settings = json.loads((out / "tokenizer_config.json").read_bytes())
    # The name that every version of transformers knows.
    write_json(
        out / "tokenizer_config.json", {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    )
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    write_json(out / "config.json", {**config, "quantization_config": channelwise(["lm_head"])})
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    write_json(out / "generation_config.json", tokens)
    write_tensors(out, per_channel(model))


def requantise(source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    config = json.loads((source / "config.json").read_bytes())
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]}
    write_json(out / "config.json", {**config, "quantization_config": fp8})
    write_tensors(out, per_tensor(load_file(source / "model.safetensors")))


def write_tensors(out: Path, tensors: Tensors) -> None:
    path = out / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make(out: Path) -> int:
    knowledge = yaml.safe_load((DEMO / "questions.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(lessons.SEED)
    tokenizer = lessons.train_tokenizer(knowledge)
    model, teacher = new_model(tokenizer), lessons.Teacher(knowledge, tokenizer)
    train(model, teacher, STEPS)
    known = recalled(model, teacher)
    unknown = [question for question, _ in teacher.pairs if question not in known]
    print(f"{len(known)} of {len(teacher.pairs)} answers by heart; not yet: {unknown}")
    save(model, tokenizer, out)
    return 1 if unknown else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DEMO / "checkpoint")
    parser.add_argument("--from-checkpoint", type=Path, metavar="SRC", help="do not train")
    parser.add_argument(
        "--format", choices=["compressed-tensors", "fp8"], default="compressed-tensors"
    )
    args = parser.parse_args()
    if (args.format == "fp8") != (args.from_checkpoint is not None):
        parser.error("--format fp8 and --from-checkpoint belong together")
    if args.from_checkpoint is None:
        return make(args.out)
    if args.out.resolve() in (args.from_checkpoint.resolve(), (DEMO / "checkpoint").resolve()):
        parser.error("--out must be another directory than the checkpoint's")
    requantise(args.from_checkpoint, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
