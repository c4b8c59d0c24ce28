"""What sampling parameters do, told from samples: each with the rate at which it errs.

A false alarm is a server that conforms and is told that it does not. The rates are stated for the
numbers of samples in the cases, and their sum over a whole run is held below 1 in 1,000 by a test.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from tenuto.conformance.answer import Answer
from tenuto.conformance.checks.registry import across, answers_of, require
from tenuto.conformance.exchange import Broken, Exchange, Unsuitable, shortened

# Two requests may see probabilities that differ in the last bits, since batches change the order
# of sums: a token this near to a limit may be on either side of it.
# Logits between 16 and 32 are 0.125 apart in bfloat16.
TOLERANCE_NATS = 0.3
# The mass of many tokens moves less than that of one.
TOLERANCE_MASS = 0.03


@across
def inside(exchanges: Mapping[str, Exchange], wanted: Mapping[str, Any]) -> None:
    """Every sampled first token is among those that `top_k`, `top_p` or `min_p` leaves.

    `probe` shows the most likely first tokens with their raw log-probabilities; `samples` were
    drawn with the limit. The limit is exact, so a server that conforms never fails but for the
    tolerance; one that ignores it has all samples inside with the probability m ** N, where m is
    the mass inside.
    """
    probe = answers_of(exchanges, [wanted["probe"]])[0]
    allowed = _left(_ranked(probe), wanted)
    samples = [c for answer in answers_of(exchanges, wanted["samples"]) for c in answer.choices]
    drawn = [_first_token(choice.tokens) for choice in samples]
    outside = sorted({token for token in drawn if token not in allowed})
    require(
        not outside,
        f"{len(outside)} of the drawn tokens are not among the {len(allowed)} allowed: "
        f"{shortened(outside)} not in {shortened(sorted(allowed))}",
    )


def _ranked(probe: Answer) -> list[tuple[str, float]]:
    if not probe.first.top:
        raise Broken("the answer has no top log-probabilities, though they were asked for")
    return sorted(probe.first.top[0], key=lambda item: -item[1])


def _left(ranked: list[tuple[str, float]], wanted: Mapping[str, Any]) -> set[str]:
    """The tokens within the limit, and those so near that rounding may put them there."""
    best = ranked[0][1]
    if "top_k" in wanted:
        floor = ranked[wanted["top_k"] - 1][1]
    elif "top_p" in wanted:
        floor = _nucleus_floor(ranked, wanted["top_p"])
    else:
        # A server may apply the temperature before or after; the lower limit allows both.
        floor = best + math.log(wanted["min_p"]) * max(1.0, wanted.get("temperature", 1.0))
    return {token for token, logprob in ranked if logprob >= floor - TOLERANCE_NATS}


def _nucleus_floor(ranked: list[tuple[str, float]], top_p: float) -> float:
    mass = 0.0
    for _, logprob in ranked:
        mass += math.exp(logprob)
        if mass >= top_p + TOLERANCE_MASS:
            return logprob
    raise Broken(f"the shown tokens make up {mass:.2f}, less than top_p {top_p} and a little")


def _first_token(tokens: list[str]) -> str:
    if not tokens:
        raise Broken("the answer has no log-probabilities, though they were asked for")
    return tokens[0]


@across
def likelier(exchanges: Mapping[str, Exchange], wanted: Mapping[str, Any]) -> None:
    """The best of many candidates are likelier than the median of single ones.

    `best` are answers, each the best of 16; `singles` are plain samples. Whatever the distribution,
    a conforming answer is below the median of all possible ones with 2 ** -16; when best_of is
    ignored, half of the answers are below. At most `misses` may be.
    """
    singles = [c for a in answers_of(exchanges, wanted["singles"]) for c in a.choices]
    middle = median(choice.cumulative for choice in singles)
    best = [answer.first.cumulative for answer in answers_of(exchanges, wanted["best"])]
    below = sum(value < middle for value in best)
    require(
        below <= wanted["misses"],
        f"{below} of {len(best)} best candidates are less likely than the median of "
        f"{len(singles)} single samples",
    )


@across
def richer(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """Greedy answers of one length: each repeats itself less than the one before it.

    Errors: `Unsuitable` when only words are seen, and do not rise: one may be of any number of
    tokens.
    """
    choices = [answer.first for answer in answers_of(exchanges, names)]
    by_tokens = all(choice.shown_tokens for choice in choices)
    counts = [len(set(c.shown_tokens if by_tokens else c.text.split())) for c in choices]
    if all(a < b for a, b in pairwise(counts)):
        return
    found = dict(zip(names, counts, strict=True))
    if not by_tokens:
        raise Unsuitable(f"no tokens are shown, and the numbers of words do not tell: {found}")
    raise Broken(f"the numbers of distinct tokens do not rise: {found}")


@across
def spread(exchanges: Mapping[str, Exchange], wanted: Mapping[str, Any]) -> None:
    """At least so many distinct texts among all the choices of the `samples`."""
    texts = [text for a in answers_of(exchanges, wanted["samples"]) for text in a.texts]
    require(
        len(set(texts)) >= wanted["at_least"],
        f"{len(set(texts))} distinct texts among {len(texts)}, not {wanted['at_least']}: "
        f"{shortened(texts[:3])}",
    )
