"""What was measured, in figures: of a round, of a target, and of targets beside each other."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from statistics import median
from typing import Any

from tenuto.bench.client import Answer
from tenuto.bench.load import Load


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest rank: the least value that at least `percent` % are not above. It did occur;
    nothing is interpolated (Hyndman and Fan 1996, type 1)."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else None


def mean_gap_s(answer: Answer) -> float:
    """Seconds per token after the first, however many an event holds: TPOT in DistServe (2024)."""
    later = answer.tokens - 1
    return (answer.texts[-1] - answer.texts[0]) / later if answer.texts and later > 0 else 0.0


def is_good(answer: Answer, load: Load) -> bool:
    """A whole answer within the limits of time that are set."""
    first_s = answer.texts[0] - answer.due if answer.texts else math.inf
    limits = ((first_s, load.goodput_ttft_ms), (mean_gap_s(answer), load.goodput_itl_ms))
    return answer.error is None and all(ms is None or s * 1000 <= ms for s, ms in limits)


def figures_of(answers: Sequence[Answer], load: Load) -> dict[str, Any]:
    """Of one round, from its first arrival to its last end. Tokens are those of whole answers; None
    says that there was nothing to measure."""
    began = min((answer.due for answer in answers), default=0.0)
    elapsed_s = max((answer.ended for answer in answers), default=0.0) - began
    whole = [answer for answer in answers if answer.error is None]
    failed = [answer for answer in answers if answer.error is not None]
    spoken = [answer for answer in whole if answer.texts]
    tokens, good = sum(a.tokens for a in whole), sum(is_good(a, load) for a in whole)
    return {
        "requests": len(answers),
        "failed": len(failed),
        "errors": dict(Counter(str(answer.error) for answer in failed)),
        "first_error": failed[0].detail if failed else None,
        "elapsed_s": elapsed_s,
        "prompt_tokens": sum(a.prompt_tokens for a in whole),
        "completion_tokens": tokens,
        "requests_per_s": _ratio(len(whole), elapsed_s),
        "tokens_per_s": _ratio(tokens, elapsed_s),
        "goodput_share": _ratio(good, len(answers)),
        "goodput_per_s": _ratio(good, elapsed_s),
        **_percentiles("ttft", (a.texts[0] - a.due for a in spoken), 50, 90, 99),
        **_percentiles("itl", (y - x for a in spoken for x, y in pairwise(a.texts)), 50, 99),
        **_percentiles("tpot", (mean_gap_s(a) for a in spoken if a.tokens > 1), 50, 99),
        **_percentiles("latency", (a.ended - a.due for a in whole), 50, 90, 99),
        **_percentiles("late", (a.sent - a.due for a in answers), 99),
    }


def cost_figures(figures: dict[str, Any], cpu_s: float, peak_rss_bytes: int) -> dict[str, Any]:
    """What the round cost the processes that were named."""
    return {
        "cpu_s": cpu_s,
        "cpu_s_per_1000_tokens": _ratio(cpu_s, figures["completion_tokens"] / 1000),
        "cpu_ms_per_request": _ratio(cpu_s, (figures["requests"] - figures["failed"]) / 1000),
        "peak_rss_mib": peak_rss_bytes / 2**20,
    }


def over_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each figure that is a number: least, median and greatest."""
    found: dict[str, list[float]] = {}
    for name, value in chain.from_iterable(figures.items() for figures in rounds):
        if type(value) in (int, float):
            found.setdefault(name, []).append(value)
    return {n: {"min": min(v), "median": median(v), "max": max(v)} for n, v in found.items()}


def ratios(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each figure of A divided by B's of the same turn: what slows both at a time cancels out."""
    turns = [(x, y) for x, y in zip(a, b, strict=False) if x["is_whole"] and y["is_whole"]]
    names = [name for name in over_rounds(a) if name in over_rounds(b)]
    pairs = [{name: _ratio(x.get(name), y.get(name)) for name in names} for x, y in turns]
    found = over_rounds(pairs)
    return {name: found[name] | {"pairs": [pair[name] for pair in pairs]} for name in found}


def _percentiles(name: str, seconds: Iterable[float], *percents: int) -> dict[str, Any]:
    ordered = sorted(second * 1000 for second in seconds)
    return {f"{name}_ms_p{percent}": percentile(ordered, percent) for percent in percents}


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
