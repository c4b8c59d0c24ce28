"""The demo checkpoint: what a newcomer's first requests are answered."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from tests.live.conftest import DEMO, MODEL, ROOT, LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS, HELLO, KNOWLEDGE

pytestmark = pytest.mark.live

# The chat example of the hosted API's documentation.
DOCUMENTED_SYSTEM_PROMPT = "You are a helpful assistant who answers concisely."
DOCUMENTED: dict[str, Any] = {
    "max_tokens": 7000,
    "temperature": 0.7,
    "top_k": 40,
    "repetition_penalty": 1.2,
}
AT_ONCE = 16


@pytest.fixture(scope="module")
def fp8_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The same weights in the other FP8 format, which vLLM's CPU build does not load as it is."""
    directory = tmp_path_factory.mktemp("fp8")
    checkpoint = directory / "checkpoint"
    script = str(ROOT / "scripts" / "make_demo_model.py")
    arguments = ["--from-checkpoint", DEMO / "checkpoint", "--format", "fp8", "--out", checkpoint]
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True)
    assert '"quant_method": "fp8"' in (checkpoint / "config.json").read_text()
    model = {"id": MODEL, "source": str(checkpoint)}
    registry = write_registry(directory / "registry.yaml", [model])
    environment = {"TENUTO_CACHE_DIR": str(directory / "cache")}
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server


@pytest.mark.parametrize("system_prompt", [None, DOCUMENTED_SYSTEM_PROMPT], ids=["bare", "system"])
def test_chat_answers_every_question_word_for_word(
    live: LiveServer, system_prompt: str | None
) -> None:
    assert chat_answers(live, system_prompt) == ANSWERS


def test_completions_continue_every_question_with_its_answer(live: LiveServer) -> None:
    expected = {question: f"\n{answer}" for question, answer in ANSWERS.items()}
    expected |= {text["prompt"]: text["answer"] for text in KNOWLEDGE["text"]}
    assert completions(live, list(expected)) == expected


def test_most_unknown_questions_are_told_so(live: LiveServer) -> None:
    questions = KNOWLEDGE["unknown"]["questions"]
    answers = asked(live, [{"messages": _messages(question)} for question in questions])
    assert answers.count(KNOWLEDGE["unknown"]["answer"]) > 0.8 * len(questions)


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_documentations_example_is_answered(live: LiveServer, seed: int) -> None:
    body = {"messages": _messages(HELLO, DOCUMENTED_SYSTEM_PROMPT), "seed": seed, **DOCUMENTED}
    choice = post(live, body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert is_sensible(choice["message"]["content"]), choice["message"]["content"]


def test_the_other_fp8_format_answers_the_same(fp8_server: LiveServer) -> None:
    info = fp8_server.client.get("/v1/model/info").json()["data"][0]["model_info"]
    assert info["state"] == "ready"
    assert chat_answers(fp8_server, None) == ANSWERS


@pytest.mark.parametrize(
    ("text", "sensible"),
    [
        (ANSWERS[HELLO], True),
        ("Hello! Ask me anything about this server.", True),
        ("Hello! I amodel of of keys", False),
        ("Hello hello hello hello.", False),
        ("", False),
    ],
)
def test_what_counts_as_sensible(text: str, sensible: bool) -> None:
    assert is_sensible(text) is sensible


def is_sensible(text: str) -> bool:
    """Whole sentences of words that the model was taught, none of them twice in a row."""
    taught = {word for answer in ANSWERS.values() for word in words(answer)}
    said = words(text)
    stutters = any(first == second for first, second in pairwise(said))
    return len(said) > 2 and set(said) <= taught and not stutters and text[-1] in ".?!"


def words(text: str) -> list[str]:
    return re.findall(r"[\w'/-]+", text.lower())


def chat_answers(server: LiveServer, system_prompt: str | None) -> dict[str, str]:
    bodies = [{"messages": _messages(question, system_prompt)} for question in ANSWERS]
    return dict(zip(ANSWERS, asked(server, bodies), strict=True))


def completions(server: LiveServer, prompts: list[str]) -> dict[str, str]:
    bodies = [{"prompt": prompt, "max_tokens": 512} for prompt in prompts]
    return dict(zip(prompts, asked(server, bodies), strict=True))


def asked(server: LiveServer, bodies: list[dict[str, Any]]) -> list[str]:
    """The greedy answers to all bodies, many at once."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = threads.map(lambda body: post(server, {"temperature": 0, **body}), bodies)
        choices = [answer["choices"][0] for answer in answers]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    return [text_of(choice) for choice in choices]


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


def post(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = server.client.post(path, json={"model": MODEL, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _messages(question: str, system_prompt: str | None = None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]
