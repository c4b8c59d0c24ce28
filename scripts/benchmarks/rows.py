"""The rows of the table: of what each is made, and what it should be. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Who is asked.
TENUTO, VLLM, LITELLM, RUST, ALONE = "tenuto", "vllm", "litellm", "rust", "AsyncLLM"
# What is asked: a load (`loads.py`), or a module here with `measured`, whose figures are Tenuto's.
STREAMS, SATURATION, SHORT, TTFT = "streams", "saturation", "short answers", "first token at {}"
COUNTER, SLOW_STREAMS = "counter", "slow_streams"
OVERHEAD, OBSERVED = "overhead", "observed"

Figures = Mapping[str, Any]
# What one round showed, by what was asked and who was asked.
Round = Mapping[tuple[str, str], Figures]


def itself(a: float) -> float:
    return a


def ratio(a: float, b: float) -> float:
    return a / b


def difference(a: float, b: float) -> float:
    return a - b


def ratio_above(a: float, b: float, base: float) -> float:
    """What `b` adds counts as a hundredth of `base` at least: less is chance, and may be none."""
    return (a - base) / max(b - base, base / 100)


@dataclass(frozen=True)
class Row:
    """`how` makes its value of one `figure` of all `subjects`. It should be at most, or with
    `at_least` no less than, `reach`, and better `beyond`."""

    name: str
    asked: str
    figure: str
    subjects: Sequence[str]
    how: Callable[..., float]
    reach: float | None
    beyond: float
    at_least: bool = False

    def values(self, rounds: Sequence[Round]) -> list[float]:
        """One for each round that has what it takes."""
        return [
            self.how(*(done[self.asked, name][self.figure] for name in self.subjects))
            for done in rounds
            if all((self.asked, name) in done for name in self.subjects)
        ]

    def verdict(self, value: float) -> str:
        for word, limit in (("beyond", self.beyond), ("reach", self.reach)):
            if limit is not None and (value >= limit if self.at_least else value <= limit):
                return word
        return "-" if self.reach is None else "missed"


CPU, CPU_OF_ONE, TOKENS = "cpu_ms_per_1000_tokens", "cpu_ms_per_request", "tokens_per_s"
P50, P99 = "ttft_ms_p50", "ttft_ms_p99"
OWN, BOTH, BOTH_AND_ALONE = (TENUTO,), (TENUTO, VLLM), (TENUTO, VLLM, ALONE)
CPU_BESIDE, TOKENS_BESIDE = "CPU per 1,000 streamed tokens / {}", "tokens/s at saturation / {}"
PYTHON = "vLLM's Python server"


def _first_token_above(streams: int) -> Row:
    name = f"first token at {streams}, above AsyncLLM's / {PYTHON}'s"
    return Row(name, TTFT.format(streams), P50, BOTH_AND_ALONE, ratio_above, 0.6, 0.4)


def _first_token(streams: int, figure: str) -> Row:
    name = f"first token at {streams}, {figure[-3:]} / {PYTHON}"
    return Row(name, TTFT.format(streams), figure, BOTH, ratio, 1.05, 0.95)


ROWS = (
    Row(CPU_BESIDE.format(PYTHON), STREAMS, CPU, BOTH, ratio, 0.50, 0.38),
    Row(CPU_BESIDE.format("LiteLLM + vLLM"), STREAMS, CPU, (TENUTO, LITELLM), ratio, 0.06, 0.045),
    Row(CPU_BESIDE.format("vLLM's Rust frontend"), STREAMS, CPU, (TENUTO, RUST), ratio, 2.0, 1.5),
    Row("the same less AsyncLLM's, ms", STREAMS, CPU, (TENUTO, ALONE), difference, 45, 25),
    Row(TOKENS_BESIDE.format(PYTHON), SATURATION, TOKENS, BOTH, ratio, 1.15, 1.3, at_least=True),
    Row(
        TOKENS_BESIDE.format("vLLM's Rust frontend"),
        SATURATION,
        TOKENS,
        (TENUTO, RUST),
        ratio,
        None,
        1.0,
        at_least=True,
    ),
    Row(f"CPU per short unstreamed chat / {PYTHON}", SHORT, CPU_OF_ONE, BOTH, ratio, 0.45, 0.30),
    *map(_first_token_above, (1, 8)),
    *(_first_token(streams, figure) for streams in (32, 128) for figure in (P50, P99)),
    Row("between tokens at 32, p99, engine steps", STREAMS, "itl_p99_steps", OWN, itself, 2, 1.5),
    Row("token counter / `tokenizers`", COUNTER, "ratio", OWN, itself, 0.25, 0.5, at_least=True),
    Row("2,000 slow streams: cores", SLOW_STREAMS, "cores", OWN, itself, 1, 0.4),
    Row("2,000 slow streams: KiB of each", SLOW_STREAMS, "kib_per_stream", OWN, itself, 60, 30),
    Row("share of metrics, keys, limits, usage", OVERHEAD, "share", OWN, itself, 0.10, 0.05),
    Row("metrics and logs add to a streamed token", OBSERVED, "growth", OWN, itself, 0.05, 0.025),
)
