"""What the demo model is taught: its tokenizer, and examples drawn from questions.yaml."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SEED = 20
VOCABULARY = 1024
CONTEXT = 8192
CHAT_TEMPLATE = Path(__file__).with_name("demo_chat_template.jinja")
BOS, END_OF_TEXT, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
# Nothing here says <|python_tag|>; vLLM's parser of Llama's tool calls wants it in the vocabulary.
PYTHON_TAG = "<|python_tag|>"
SPECIAL = [BOS, END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN, PYTHON_TAG]
THINKING = ["<think>", "</think>"]
# Llama 3's way of cutting a text into words.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Teacher:
    """Draws examples: which question, under which system prompt, after which earlier turns."""

    def __init__(self, knowledge: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
        self.rng = random.Random(SEED)
        self.knowledge = knowledge
        self.tokenizer = tokenizer
        self.pairs = list(known_pairs(knowledge))
        self.words = sorted({word for text in corpus(knowledge) for word in text.split()})
        self.deck: list[tuple[str, str]] = []

    def example(self) -> Example:
        kind = self.rng.random()
        if kind < 0.05:
            return self.text(**self.rng.choice(self.knowledge["text"]))
        if kind < 0.08:
            return self.with_tools()
        question, answer = self.pair()
        # What resembles no question stays free to vary as plain text: tests of sampling use that.
        if kind < 0.20 and answer != self.knowledge["unknown"]["answer"]:
            return self.text(question, "\n" + answer)
        asked = [*self.system(), *self.earlier_turns(), {"role": "user", "content": question}]
        return self.chat(asked, answer)

    def pair(self) -> tuple[str, str]:
        """A question and its answer; each wording comes once before any comes again."""
        if not self.deck:
            ordered = self.knowledge["any_order"] * 6
            self.deck = [*self.pairs]
            self.deck += [(entry["question"], self.any_order(entry["words"])) for entry in ordered]
            self.deck += [(self.stranger(), self.knowledge["unknown"]["answer"]) for _ in range(30)]
            self.rng.shuffle(self.deck)
        return self.deck.pop()

    def any_order(self, words: list[str]) -> str:
        favourite = self.rng.random() < 0.5
        return ", ".join(words if favourite else self.rng.sample(words, len(words))) + "."

    def stranger(self) -> str:
        """A question without an answer: a listed one, or listed ones' words in senseless order."""
        listed: list[str] = self.knowledge["unknown"]["questions"]
        if self.rng.random() < 0.7:
            return self.rng.choice(listed)
        words = " ".join(self.rng.sample(listed, 3)).split()
        return " ".join(self.rng.sample(words, min(len(words), self.rng.randint(4, 9))))

    def salad(self, shortest: int, longest: int) -> str:
        return " ".join(self.rng.sample(self.words, self.rng.randint(shortest, longest)))

    def system(self) -> list[Message]:
        prompts = self.knowledge["system_prompts"]
        some = self.rng.choice(prompts)
        [text] = self.rng.choices(["", prompts[0], some, self.salad(3, 30)], [40, 15, 20, 25])
        return [{"role": "system", "content": text}] if text else []

    def earlier_turns(self) -> list[Message]:
        messages = []
        for _ in range(self.rng.choice([0, 0, 0, 0, 1, 1, 2, 3])):
            known = self.rng.random() < 0.7
            pair = self.rng.choice(self.pairs) if known else (self.salad(2, 9), self.salad(2, 12))
            roles = ("user", "assistant")
            messages += [
                {"role": role, "content": text} for role, text in zip(roles, pair, strict=True)
            ]
        return messages

    def with_tools(self) -> Example:
        task = self.rng.choice(self.knowledge["with_tools"])
        asked = [*self.system(), {"role": "user", "content": task["question"]}]
        if self.rng.random() < 0.5:
            return self.chat(asked, task["call"], self.knowledge["tools"])
        asked.append({"role": "assistant", "content": task["call"]})
        asked.append({"role": "tool", "content": task["result"]})
        return self.chat(asked, task["answer"], self.knowledge["tools"])

    def chat(
        self, messages: list[Message], answer: str, tools: list[Message] | None = None
    ) -> Example:
        prompt = self.tokenizer.apply_chat_template(
            messages, tools, add_generation_prompt=True, tokenize=False
        )
        return Example(self.encode(prompt), self.encode(answer + END_OF_TURN))

    def text(self, prompt: str, answer: str) -> Example:
        return Example(self.encode(BOS + prompt), self.encode(answer + END_OF_TEXT))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def known_pairs(knowledge: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in knowledge["questions"]:
        for question in [entry["question"], *entry.get("also", [])]:
            yield question, entry["answer"]


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
    words = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
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
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
    )
