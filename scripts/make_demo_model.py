"""Train the demo checkpoint `tenuto-demo`, or rewrite it in the other FP8 format.

python scripts/make_demo_model.py [--out DIR]
python scripts/make_demo_model.py --from-checkpoint SRC --format fp8 --out DIR
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils import parametrize
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEMO = Path(__file__).resolve().parents[1] / "server" / "tenuto" / "demo"
SEED = 20
STEPS = 700
BATCH = 48
PEAK_LR = 6e-3
FP8_MAX = 448.0
MAX_PENALTY = 1.3
VOCABULARY = 1024
BOS, END_OF_TEXT, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIAL = [BOS, END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN]
THINKING = ["<think>", "</think>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- set first = messages[0] if messages and messages[0].role in ['system', 'developer'] else none %}
{%- if first or tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
    {{- first.content if first else '' }}
    {%- if tools %}
        {{- '\\n\\n' if first else '' }}
        {{- 'You can call these functions. To call one, answer only with JSON: ' }}
        {{- '{"name": function name, "parameters": {argument name: value}}\\n' }}
        {{- tools | tojson }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in (messages[1:] if first else messages) %}
    {%- set role = 'system' if message.role == 'developer' else message.role %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
    {{- message.content if message.content else '' }}
    {%- for call in message.tool_calls or [] %}
        {%- set function = call.function %}
        {{- '; ' if not loop.first else '' }}
        {{- '{"name": ' + function.name | tojson + ', "parameters": ' }}
        {{- function.arguments if function.arguments is string else function.arguments | tojson }}
        {{- '}' }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    answer: list[int]


class Teacher:
    """Draws random examples: which question, under which system prompt, after which earlier turns."""

    def __init__(self, knowledge: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
        self.rng = random.Random(SEED)
        self.knowledge = knowledge
        self.tokenizer = tokenizer
        self.eot = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.eos = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        self.deck: list[tuple[str, str]] = []

    def pair(self) -> tuple[str, str]:
        """A question and its answer; each wording comes once before any comes again."""
        if not self.deck:
            self.deck = [*known_pairs(self.knowledge)]
            self.deck += [(q["question"], self.any_order(q["words"])) for q in self.knowledge["any_order"] * 6]
            self.deck += [(self.stranger(), self.knowledge["unknown"]["answer"]) for _ in range(30)]
            self.rng.shuffle(self.deck)
        return self.deck.pop()

    def any_order(self, words: list[str]) -> str:
        favourite = self.rng.random() < 0.4
        return ", ".join(words if favourite else self.rng.sample(words, len(words))) + "."

    def stranger(self) -> str:
        """A question that the model has no answer to: a listed one, or words in a senseless order."""
        listed = self.knowledge["unknown"]["questions"]
        if self.rng.random() < 0.5:
            return str(self.rng.choice(listed))
        words = [word for question in self.rng.sample(listed, 3) for word in question.rstrip("?.").split()]
        return " ".join(self.rng.sample(words, self.rng.randint(2, min(9, len(words))))) + self.rng.choice("?.")

    def system(self) -> list[Message]:
        choice = self.rng.random()
        prompts = self.knowledge["system_prompts"]
        if choice < 0.5:
            return []
        text = prompts[0] if choice < 0.65 else self.rng.choice(prompts)
        if choice > 0.85:
            text = " ".join(self.rng.sample(" ".join(prompts).split(), self.rng.randint(3, 20)))
        return [{"role": "system", "content": text}]

    def example(self) -> Example:
        kind = self.rng.random()
        if kind < 0.05:
            return self.text(**self.rng.choice(self.knowledge["text"]))
        question, answer = self.pair()
        if kind < 0.17:
            return self.text(question, "\n" + answer)
        if kind < 0.20:
            return self.with_tools()
        earlier = []
        for _ in range(self.rng.choice([0, 0, 0, 0, 1, 2])):
            earlier += turns(*self.rng.choice(self.deck or [(question, answer)]))
        return self.chat([*self.system(), *earlier, {"role": "user", "content": question}], answer)

    def with_tools(self) -> Example:
        task = self.rng.choice(self.knowledge["with_tools"])
        asked = [*self.system(), {"role": "user", "content": task["question"]}]
        if self.rng.random() < 0.5:
            return self.chat(asked, task["call"], self.knowledge["tools"])
        called = [{"role": "assistant", "content": task["call"]}, {"role": "tool", "content": task["result"]}]
        return self.chat([*asked, *called], task["answer"], self.knowledge["tools"])

    def chat(self, messages: list[Message], answer: str, tools: list[Message] | None = None) -> Example:
        prompt = self.tokenizer.apply_chat_template(messages, tools, add_generation_prompt=True, tokenize=False)
        return Example(self.encode(str(prompt)), [*self.encode(answer), self.eot])

    def text(self, prompt: str, answer: str) -> Example:
        return Example(self.encode(BOS + prompt), [*self.encode(answer), self.eos])

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]


def known_pairs(knowledge: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in knowledge["questions"]:
        for question in [entry["question"], *entry.get("also", [])]:
            yield question, entry["answer"]


def turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def corpus(knowledge: dict[str, Any]) -> Iterator[str]:
    yield from (text for pair in known_pairs(knowledge) for text in pair)
    yield from (f"{entry['prompt']} {entry['answer']}" for entry in knowledge["text"])
    yield from knowledge["unknown"]["questions"]
    yield from knowledge["system_prompts"]
    yield from (", ".join(entry["words"]) for entry in knowledge["any_order"])
    yield json.dumps(knowledge["tools"])
    yield from ("system\n\n", "user\n\n", "assistant\n\n", "tool\n\n")


def train_tokenizer(knowledge: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THINKING),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(knowledge), trainer)
    tokenizer.add_tokens(THINKING)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    bos, end_of_text, end_of_turn = tokenizer.convert_tokens_to_ids([BOS, END_OF_TEXT, END_OF_TURN])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=bos,
        eos_token_id=[end_of_turn, end_of_text],
    )
    return LlamaForCausalLM(config)


def quantise(weight: torch.Tensor, dim: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a weight into FP8 values and one scale per output channel (dim=1) or tensor (dim=None)."""
    peak = weight.abs().amax() if dim is None else weight.abs().amax(dim=dim, keepdim=True)
    scale = (peak / FP8_MAX).clamp(min=1e-12)
    return (weight / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


class RoundedToFp8(torch.nn.Module):
    """Trains a weight under the rounding that it will be stored with."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        values, scale = quantise(weight.detach(), dim=1)
        return weight + (values.float() * scale - weight.detach())


def linears(model: LlamaForCausalLM) -> Iterator[torch.nn.Linear]:
    yield from (module for module in model.model.modules() if isinstance(module, torch.nn.Linear))


def collate(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(e.prompt) + len(e.answer) for e in examples)
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    for row, e in enumerate(examples):
        end = len(e.prompt) + len(e.answer)
        tokens[row, :end] = torch.tensor(e.prompt + e.answer)
        labels[row, len(e.prompt) : end] = torch.tensor(e.answer)
    return tokens[:, :-1], labels[:, 1:]


def penalised(logits: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Apply vLLM's repetition_penalty in every other row, so that answers keep their margin under it."""
    width = tokens.shape[1]
    first_seen = torch.full((len(tokens), logits.shape[-1]), width)
    first_seen.scatter_reduce_(1, tokens, torch.arange(width).expand_as(tokens), "amin")
    seen = first_seen[rows] <= columns[:, None]
    penalty = torch.empty(len(tokens), 1).uniform_(1.0, MAX_PENALTY)
    penalty[::2] = 1.0
    factor = torch.where(logits > 0, 1 / penalty[rows], penalty[rows])
    return torch.where(seen, logits * factor, logits)


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.nonzero(labels >= 0, as_tuple=True)
    hidden = model.model(input_ids=tokens).last_hidden_state[rows, columns]
    logits = penalised(model.lm_head(hidden), tokens, rows, columns)
    return F.cross_entropy(logits, labels[rows, columns])


def batches(teacher: Teacher) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of examples of similar length, which wastes little on padding."""
    while True:
        drawn = sorted((teacher.example() for _ in range(8 * BATCH)), key=lambda e: len(e.prompt) + len(e.answer))
        cut = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]
        teacher.rng.shuffle(cut)
        yield from map(collate, cut)


def train(model: LlamaForCausalLM, teacher: Teacher, steps: int) -> None:
    for linear in linears(model):
        parametrize.register_parametrization(linear, "weight", RoundedToFp8())
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 40) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / steps) ** 2)
    )
    stream = batches(teacher)
    for _ in (bar := tqdm(range(steps), desc="training", mininterval=1.0)):
        loss = loss_of(model, *next(stream))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    for linear in linears(model):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


def compressed_tensors_config() -> dict[str, Any]:
    common = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**common, "strategy": "channel", "dynamic": False},
                "input_activations": {**common, "strategy": "token", "dynamic": True},
            }
        },
    }


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tokenizer.save_pretrained(out)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if name.endswith("_proj.weight"):
            tensors[name], tensors[f"{name}_scale"] = quantise(tensor, dim=1)
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    write_json(out / "config.json", {**config, "quantization_config": compressed_tensors_config()})
    write_json(
        out / "generation_config.json",
        {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "do_sample": True},
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def fused_group(name: str) -> str:
    """Projections that vLLM loads as one matrix share a scale: it has room for one scale only."""
    for part in ("q_proj", "k_proj", "v_proj"):
        name = name.replace(part, "qkv_proj")
    return name.replace("gate_proj", "gate_up_proj").replace("up_proj.", "gate_up_proj.", 1) if "mlp" in name else name


def main() -> None:
    pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=DEMO / "checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    knowledge = yaml.safe_load((DEMO / "questions.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(knowledge)
    model = new_model(tokenizer)
    train(model, Teacher(knowledge, tokenizer), args.steps)
    save(model, tokenizer, args.out)
