"""Every documented parameter by what it does to the answer, on both endpoints, streamed or not."""

from typing import Any

import pytest

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS
from tests.live.ways import Choice, Way, each_way

pytestmark = pytest.mark.live

GREEDY = ANSWERS[COLOURS]
# A temperature at which the demo model answers this prompt at random, and a seed of it.
RANDOM: dict[str, Any] = {"temperature": 1.5, "seed": 5}
END_TOKENS = ("<|eot_id|>", "<|end_of_text|>")


@each_way
def test_temperature_0_is_greedy(live: LiveServer, way: Way) -> None:
    assert way.ask(live, COLOURS, temperature=0).texts == [way.lead + GREEDY]


@each_way
def test_temperature_spreads_the_choices(live: LiveServer, way: Way) -> None:
    cold, warm, default = (
        set(way.ask(live, COLOURS, n=6, seed=1, **temperature).texts)
        for temperature in ({"temperature": 0.01}, {"temperature": 1.0}, {})
    )
    assert cold == {way.lead + GREEDY}
    assert len(warm) > 1
    assert warm == default


@each_way
@pytest.mark.parametrize("narrow", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1}], ids=str)
def test_only_the_likeliest_token_is_left(
    live: LiveServer, way: Way, narrow: dict[str, float]
) -> None:
    assert way.ask(live, COLOURS, **RANDOM).texts != [way.lead + GREEDY]
    assert way.ask(live, COLOURS, **RANDOM, **narrow).texts == [way.lead + GREEDY]


@each_way
@pytest.mark.parametrize(
    "off", [{"top_p": 1, "top_k": -1, "min_p": 0}, {"top_k": 0}, {"top_k": 10**6}], ids=str
)
def test_off_values_change_nothing(live: LiveServer, way: Way, off: dict[str, float]) -> None:
    assert way.ask(live, COLOURS, **RANDOM, **off).texts == way.ask(live, COLOURS, **RANDOM).texts


@each_way
@pytest.mark.parametrize(
    ("penalty", "rewarding", "punishing"),
    [
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
        ("repetition_penalty", 0.5, 5),
    ],
)
def test_penalties_widen_the_vocabulary(
    live: LiveServer, way: Way, penalty: str, rewarding: float, punishing: float
) -> None:
    """Of the same length, since the model may not stop."""
    few, plain, many = (
        _babble(live, way, **{penalty: value}) if value else _babble(live, way)
        for value in (rewarding, None, punishing)
    )
    assert len({tuple(few), tuple(plain), tuple(many)}) == 3
    assert len(set(few)) < len(set(many))


@each_way
def test_repetition_penalty_changes_the_greedy_text(live: LiveServer, way: Way) -> None:
    penalised = way.ask(live, COLOURS, temperature=0, repetition_penalty=2)
    assert penalised.texts != [way.lead + GREEDY]


@each_way
def test_the_same_seed_gives_the_same_text(live: LiveServer, way: Way) -> None:
    texts = [way.ask(live, COLOURS, temperature=1.5, seed=seed).only.text for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


@each_way
@pytest.mark.parametrize("none", [{}, {"seed": -1}], ids=["left-out", "minus-one"])
def test_without_a_seed_each_text_is_another(
    live: LiveServer, way: Way, none: dict[str, int]
) -> None:
    texts = [way.ask(live, COLOURS, temperature=2, **none).only.text for _ in range(2)]
    assert texts[0] != texts[1]


@each_way
def test_n_choices_are_distinct(live: LiveServer, way: Way) -> None:
    answer = way.ask(live, COLOURS, n=4, **RANDOM)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(answer.texts)) == 4
    lengths = [len(choice.token_ids) for choice in answer.choices]
    assert answer.usage["completion_tokens"] == sum(lengths)


@each_way
def test_best_of_returns_the_likeliest_candidates(live: LiveServer, way: Way) -> None:
    """vLLM seeds candidate i with seed + i, so the candidates are those of `n`."""
    candidates = way.ask(live, COLOURS, n=8, logprobs=0, **RANDOM).choices
    ranked = sorted(candidates, key=lambda choice: -choice.cumulative)
    assert ranked[:3] != candidates[:3]
    best = way.ask(live, COLOURS, n=3, best_of=8, **RANDOM)
    assert [choice.index for choice in best.choices] == [0, 1, 2]
    assert best.texts == [choice.text for choice in ranked[:3]]
    lengths = [len(choice.token_ids) for choice in ranked[:3]]
    assert best.usage["completion_tokens"] == sum(lengths)


@each_way
def test_best_of_equal_to_n_keeps_the_order(live: LiveServer, way: Way) -> None:
    plain = way.ask(live, COLOURS, n=4, **RANDOM)
    assert way.ask(live, COLOURS, n=4, best_of=4, **RANDOM).texts == plain.texts


@each_way
@pytest.mark.parametrize(
    ("stop", "reached"),
    [("green", "green"), (["violet", "green", "black"], "green"), (["w, gr", "nowhere"], "w, gr")],
    ids=str,
)
def test_stop_cuts_the_text(
    live: LiveServer, way: Way, stop: str | list[str], reached: str
) -> None:
    choice = way.ask(live, COLOURS, temperature=0, stop=stop).only
    assert choice.text == way.lead + GREEDY.partition(reached)[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", reached)


@each_way
def test_max_tokens_ends_the_answer(live: LiveServer, way: Way) -> None:
    answer = way.ask(live, COLOURS, temperature=0, max_tokens=5)
    assert len(answer.only.token_ids) == 5 == answer.usage["completion_tokens"]
    assert answer.only.text
    assert (way.lead + GREEDY).startswith(answer.only.text)
    assert answer.only.finish_reason == "length"
    assert way.ask(live, COLOURS, temperature=0).only.finish_reason == "stop"


@each_way
def test_min_tokens_delays_the_end(live: LiveServer, way: Way) -> None:
    short = way.ask(live, COLOURS, temperature=0).only
    wanted = len(short.token_ids) + 10
    long = way.ask(live, COLOURS, temperature=0, min_tokens=wanted, max_tokens=wanted).only
    assert len(long.token_ids) == wanted
    assert long.text.startswith(short.text)
    assert len(long.text) > len(short.text)


@each_way
def test_detokenize_false_gives_token_ids(live: LiveServer, way: Way) -> None:
    fields: dict[str, Any] = {"temperature": 0, "logprobs": 0, "return_token_ids": None}
    choice = way.ask(live, COLOURS, detokenize=False, **fields).only
    assert choice.text == ""
    assert _decoded(live, choice) == way.lead + GREEDY
    assert choice.tokens == [f"token_id:{token}" for token in choice.token_ids]
    assert not any(choice.token_bytes)
    assert choice.finish_reason == "stop"
    # Told to, it is what it is without.
    told = way.ask(live, COLOURS, detokenize=True, **fields).only
    assert (told.text, told.token_ids) == (way.lead + GREEDY, [])


@each_way
def test_skip_special_tokens_false_shows_them(live: LiveServer, way: Way) -> None:
    fields = {"temperature": 0, "ignore_eos": True, "max_tokens": 64}
    hidden = way.ask(live, COLOURS, **fields).only
    shown = way.ask(live, COLOURS, skip_special_tokens=False, **fields).only
    assert shown.token_ids == hidden.token_ids
    assert shown.text.startswith(tuple(way.lead + GREEDY + end for end in END_TOKENS))
    assert not any(end in hidden.text for end in END_TOKENS)
    assert shown.text != hidden.text


def _babble(live: LiveServer, way: Way, **fields: Any) -> list[int]:
    """Greedy tokens beyond anything that the model was taught."""
    fields |= {"temperature": 0, "min_tokens": 64, "max_tokens": 64}
    return way.ask(live, "The", **fields).only.token_ids


def _decoded(live: LiveServer, choice: Choice) -> str:
    body = {"model": MODEL, "tokens": choice.token_ids}
    text: str = live.client.post("/detokenize", json=body).json()["prompt"]
    return text.removesuffix(END_TOKENS[0]).removesuffix(END_TOKENS[1])
