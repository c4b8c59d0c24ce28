"""What the demo model knows by heart, as the file says it that it was trained on."""

from typing import Any

import yaml

from tests.live.conftest import DEMO

KNOWLEDGE: dict[str, Any] = yaml.safe_load((DEMO / "questions.yaml").read_text(encoding="utf-8"))


def _answers() -> dict[str, str]:
    answers = {
        question: entry["answer"]
        for entry in KNOWLEDGE["questions"]
        for question in [entry["question"], *entry.get("also", ())]
    }
    for entry in KNOWLEDGE["any_order"]:
        answers[entry["question"]] = ", ".join(entry["words"]) + "."
    return answers


# Every question with the greedy answer.
ANSWERS = _answers()
HELLO = "Hello!"
# Long, and of one kind of word.
COUNTING = "Count from one to thirty."
# Its answer has characters of two, three and four bytes, split over tokens.
GREETINGS = "Say hello in many languages."
# Its answer varies as soon as it is sampled.
COLOURS = "Name eight colours in any order."
