"""What is told from samples: the limits of what may be drawn, and how exactly they are held."""

import math

import pytest

from tenuto.conformance.checks.registry import ACROSS
from tenuto.conformance.checks.sampling import TOLERANCE_MASS, TOLERANCE_NATS
from tenuto.conformance.exchange import Broken, Exchange, Unsuitable
from tests.conformance.test_checks import drawn, says, whole, with_ids

PROBABILITIES = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
SHOWN = {token: math.log(p) for token, p in PROBABILITIES.items()}
NEAR, BEYOND = TOLERANCE_NATS * 0.9, TOLERANCE_NATS * 1.1


def inside(tokens: str, limit: dict[str, float], shown: dict[str, float] = SHOWN) -> None:
    probe = drawn("a", top=shown)
    exchanges = {"probe": probe, "s1": drawn(*tokens), "s2": drawn("a", "a")}
    ACROSS["inside"](exchanges, {"probe": "probe", "samples": ["s*"], **limit})


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        ({"top_k": 1}, "a"),
        ({"top_k": 3}, "abc"),
        ({"top_p": 0.3}, "a"),
        # Other sums of the same probabilities may be a little less.
        ({"top_p": 0.5 - TOLERANCE_MASS * 1.1}, "a"),
        ({"top_p": 0.5 - TOLERANCE_MASS * 0.9}, "ab"),
        ({"top_p": 0.6}, "ab"),
        ({"top_p": 0.95}, "abcd"),
        ({"min_p": 0.7}, "ab"),
        ({"min_p": 0.4}, "abc"),
        # The limit may be of probabilities before the temperature, or after it.
        ({"min_p": 0.7, "temperature": 3}, "abc"),
        ({"min_p": 0.7, "temperature": 0.5}, "ab"),
    ],
)
def test_inside_a_limit(limit: dict[str, float], allowed: str) -> None:
    inside(allowed, limit)
    for token in set("abcdz") - {*allowed}:
        with pytest.raises(Broken, match=f'1 of the drawn tokens .* \\["{token}"\\] not in'):
            inside(allowed + token, limit)


@pytest.mark.parametrize("limit", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.7}])
def test_rounding_may_put_a_token_inside(limit: dict[str, float]) -> None:
    """Of the least likely token that is allowed, or of the limit itself."""
    floor = SHOWN["b"] if "min_p" not in limit else SHOWN["a"] + math.log(0.7)
    inside("c", limit, SHOWN | {"c": floor - NEAR})
    with pytest.raises(Broken):
        inside("c", limit, SHOWN | {"c": floor - BEYOND})


def test_what_cannot_be_told_is_no_pass() -> None:
    wanted = {"probe": "p", "samples": ["s"], "top_k": 1}
    with pytest.raises(Broken, match=r"make up 1\.00, less than top_p 1\.5"):
        inside("a", {"top_p": 1.5})
    with pytest.raises(Broken, match="no top log-probabilities"):
        ACROSS["inside"]({"p": says("a"), "s": drawn("a")}, wanted)
    with pytest.raises(Broken, match="no log-probabilities"):
        ACROSS["inside"]({"p": drawn("a", top={"a": -1.0}), "s": says("a")}, wanted)


@pytest.mark.parametrize(("num_below", "is_fine"), [(0, True), (2, True), (3, False), (5, False)])
def test_the_best_are_likelier(num_below: int, is_fine: bool) -> None:
    singles = {f"single{i}": drawn("a", "b", values=-float(i)) for i in range(1, 4)}
    values = [-2.1] * num_below + [-2.0] * (5 - num_below)
    best = {f"best{i}": drawn("a", "z", values=value) for i, value in enumerate(values)}
    wanted = {"singles": ["single*"], "best": ["best*"], "misses": 2}
    if is_fine:
        ACROSS["likelier"](singles | best, wanted)
    else:
        with pytest.raises(
            Broken, match=f"{num_below} of 5 best candidates .* of 6 single samples"
        ):
            ACROSS["likelier"](singles | best, wanted)


def said_in(*tokens: str) -> Exchange:
    """One choice of these tokens."""
    logprobs = {"tokens": tokens, "token_logprobs": [-1.0] * len(tokens)}
    choice = {"index": 0, "text": "".join(tokens), "logprobs": logprobs}
    return whole({"choices": [choice], "usage": {}})


def richer(*answers: Exchange) -> None:
    ACROSS["richer"](dict(zip("ab", answers, strict=True)), ["a", "b"])


@pytest.mark.parametrize(
    "repeats",
    [with_ids(1, 1), said_in("aa", "aa"), said_in("a b ", "a b ")],
    ids=["ids", "texts", "more words"],
)
def test_richer_counts_tokens_where_all_answers_show_them(repeats: Exchange) -> None:
    various = said_in("a", "a ")
    richer(repeats, various)
    with pytest.raises(Broken, match=r"distinct tokens do not rise: \{'a': 2, 'b': 1\}") as found:
        richer(various, repeats)
    assert not isinstance(found.value, Unsuitable)


@pytest.mark.parametrize("more", [says("x y z"), said_in("x y", " z")], ids=["words", "tokens"])
def test_words_show_that_an_answer_is_richer_and_never_that_it_is_not(more: Exchange) -> None:
    """One word may be of any number of tokens."""
    richer(says("x x y"), more)
    for answers in ((more, says("x x y")), (says("x y z"), more)):
        with pytest.raises(Unsuitable, match="no tokens are shown"):
            richer(*answers)
