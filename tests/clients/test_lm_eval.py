"""lm-eval's `local-completions` against the server, and its perplexity against transformers'."""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLIENT_S, HERE, INSTALL_S, Run
from tests.live.conftest import DEMO, MODEL, LiveServer
from tests.live.knowledge import ANSWERS

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]

# The model continues a question with a line break and the answer. Behind a full stop the two would
# be one token, at which lm-eval cannot tell context from continuation.
QUESTIONS = [question for question in ANSWERS if not question.endswith(".")][:40:4]
# Known by heart, and never seen. Many, since rounding to bfloat16 and FP8 moves the log-probability
# of each token a little, and only the mean of many is steady (0.4 % here).
TEXTS = [
    *dict.fromkeys(ANSWERS.values()),
    "It was the best of times, it was the worst of times.",
    "Überall 你好, naïve café 🎼 and 3.14159!",
]
TOLERANCE = 0.01


@dataclass
class Evaluation:
    """Metrics by task, and per task the samples: what was asked and what came back."""

    metrics: dict[str, dict[str, float]]
    samples: dict[str, list[dict[str, Any]]]


def evaluate(
    run: Run,
    directory: Path,
    server: LiveServer,
    tasks: list[str],
    batch_size: int = 1,
    **model: object,
) -> Evaluation:
    questions = [
        {"question": question, "answer": ANSWERS[question], "choices": choices, "label": label}
        for question in QUESTIONS
        for choices, label in [choices_of(question)]
    ]
    (directory / "questions.json").write_text(json.dumps(questions))
    (directory / "texts.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    arguments = {
        "model": MODEL,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": DEMO / "checkpoint",
        "tokenizer_backend": "huggingface",
        "max_length": 4096,
        **model,
    }
    run(
        "lm-eval",
        "lm_eval",
        *("--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", ",".join(tasks), "--include_path", str(HERE / "tasks")),
        *("--batch_size", str(batch_size)),
        *("--output_path", str(directory / "out"), "--log_samples"),
        cwd=directory,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        OPENAI_API_KEY="none",
    )
    [results] = (directory / "out").rglob("results_*.json")
    samples = {
        task: [json.loads(line) for line in path.read_text().splitlines()]
        for task in tasks
        for path in (directory / "out").rglob(f"samples_{task}_*.jsonl")
    }
    metrics = json.loads(results.read_text())["results"]
    return Evaluation(
        {
            task: {name.removesuffix(",none"): value for name, value in found.items()}
            for task, found in metrics.items()
        },
        samples,
    )


def choices_of(question: str) -> tuple[list[str], int]:
    """Three answers, and which of them is the question's own."""
    position = QUESTIONS.index(question)
    asked = [QUESTIONS[(position + step) % len(QUESTIONS)] for step in (0, 3, 5)]
    label = position % 3
    asked[0], asked[label] = asked[label], asked[0]
    return [ANSWERS[other] for other in asked], label


def log_likelihoods(texts: list[str]) -> list[float]:
    """By transformers, in an own process: it holds neither vLLM nor the server."""
    script = HERE / "scripts" / "likelihoods.py"
    ran = subprocess.run(
        [sys.executable, script, DEMO / "checkpoint"],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
    )
    assert ran.returncode == 0, ran.stderr
    values: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return values


def likelihoods_of(evaluation: Evaluation, task: str) -> list[float]:
    """Of every request of the task, in its order."""
    return [
        float(first[0] if isinstance(first, list) else first)
        for sample in evaluation.samples[task]
        for [first] in sample["resps"]
    ]


def perplexity(likelihoods: list[float], sizes: list[int]) -> float:
    return math.exp(-sum(likelihoods) / sum(sizes))


@pytest.fixture(scope="module")
def graded(run: Run, live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """One prompt of token ids per request; the model was trained behind its first token."""
    directory = tmp_path_factory.mktemp("graded")
    return evaluate(run, directory, live, ["demo_answers", "demo_choices"], add_bos_token=True)


@pytest.fixture(scope="module")
def rolled(run: Run, live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """lm-eval's defaults, which put the first token before each text by themselves."""
    return evaluate(run, tmp_path_factory.mktemp("rolled"), live, ["demo_perplexity"])


def test_generation_is_graded(graded: Evaluation) -> None:
    said = [sample["resps"][0][0] for sample in graded.samples["demo_answers"]]
    assert said == ["\n" + ANSWERS[question] for question in QUESTIONS]
    assert graded.metrics["demo_answers"]["exact_match"] == 1


def test_log_likelihood_finds_the_right_answer(graded: Evaluation) -> None:
    assert graded.metrics["demo_choices"]["acc"] == 1
    for sample in graded.samples["demo_choices"]:
        greedy = [response[0][1] == "True" for response in sample["resps"]]
        assert [position for position, is_greedy in enumerate(greedy) if is_greedy] == [
            sample["doc"]["label"]
        ]


def test_perplexity_is_that_of_transformers(rolled: Evaluation) -> None:
    found = rolled.metrics["demo_perplexity"]
    expected = log_likelihoods(TEXTS)
    words = [len(re.split(r"\s+", text)) for text in TEXTS]
    bytes_ = [len(text.encode()) for text in TEXTS]
    assert found["word_perplexity"] == pytest.approx(perplexity(expected, words), rel=TOLERANCE)
    assert found["byte_perplexity"] == pytest.approx(perplexity(expected, bytes_), rel=TOLERANCE)


def test_batches_and_concurrency_change_nothing(
    run: Run, live: LiveServer, tmp_path: Path, rolled: Evaluation
) -> None:
    again = evaluate(run, tmp_path, live, ["demo_perplexity"], batch_size=8, num_concurrent=4)
    assert likelihoods_of(again, "demo_perplexity") == pytest.approx(
        likelihoods_of(rolled, "demo_perplexity"), rel=TOLERANCE / 10
    )


def test_generation_from_batches_of_texts(run: Run, live: LiveServer, tmp_path: Path) -> None:
    found = evaluate(run, tmp_path, live, ["demo_answers"], batch_size=8, tokenized_requests=False)
    assert found.metrics["demo_answers"]["exact_match"] == 1
