"""What answers say, beside each other."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

from tenuto.conformance.answer import folded
from tenuto.conformance.checks.registry import across, answers_of, each, require
from tenuto.conformance.exchange import Broken, Exchange, Unsuitable, shortened

SPECIAL_TOKEN = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")
# What stands for one, and halves of one that were sent apart.
BROKEN_CHARACTER = re.compile("[\ufffd\ud800-\udfff]")


@across
def same_text(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """Every choice of every answer has one text, and it is not empty."""
    texts = [text for answer in answers_of(exchanges, names) for text in answer.texts]
    require(bool(texts[0]), "the text is empty")
    if others := sorted(set(texts) - {texts[0]}):
        raise Broken(
            f"{len(texts)} answers should be one text: {shortened(texts[0])}, "
            f"but also {shortened(others[0])}"
        )


@across
def mostly_same_text(exchanges: Mapping[str, Exchange], wanted: Mapping[str, Any]) -> None:
    """At least so many of the answers agree: batches change the last bits of a GPU's sums, so that
    one of several equal requests may part ways."""
    texts = [answer.first.text for answer in answers_of(exchanges, wanted["samples"])]
    [(text, count)] = Counter(texts).most_common(1)
    require(bool(text), "the text is empty")
    require(
        count >= wanted["at_least"],
        f"{count} of {len(texts)} answers agree, not {wanted['at_least']}: {shortened(texts, 300)}",
    )


@across
def different_text(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """No text of the first answer is one of the second's."""
    first, second = ({*answer.texts} for answer in answers_of(exchanges, names))
    if shared := sorted(first & second):
        raise Broken(f"both say {shortened(shared[0])}")


@across
def begins(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """The first answer's text is the beginning of the second's, and shorter."""
    short, long = (answer.first.text for answer in answers_of(exchanges, names))
    require(
        long.startswith(short) and short != long,
        f"{shortened(short)} is not the beginning of {shortened(long)}",
    )


@across
def cut_at(exchanges: Mapping[str, Exchange], wanted: Mapping[str, Any]) -> None:
    """The `cut` answer is the `full` one up to the first of the stop strings."""
    full, cut = answers_of(exchanges, [wanted["full"], wanted["cut"]])
    places = [full.first.text.find(stop) for stop in wanted["stop"]]
    found = [place for place in places if place >= 0]
    require(bool(found), f"the full answer has none of {wanted['stop']}: {full.first.text!r}")
    expected = full.first.text[: min(found)]
    require(
        cut.first.text == expected,
        f"the answer is {shortened(cut.first.text)} instead of {shortened(expected)}",
    )


@across
def joined(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """A stream's pieces make the text of the unstreamed answer, choice by choice."""
    streamed, whole = answers_of(exchanges, names)
    require(bool(whole.first.text), "the text is empty")
    require(
        streamed.texts == whole.texts,
        f"streamed {shortened(streamed.texts)}, unstreamed {shortened(whole.texts)}",
    )


@each
def distinct(exchange: Exchange, at_least: int) -> None:
    """So many of the choices' texts differ."""
    texts = folded(exchange).texts
    require(
        len(set(texts)) >= at_least,
        f"{len(set(texts))} of {len(texts)} texts are distinct, not {at_least}: {shortened(texts)}",
    )


@each
def says(exchange: Exchange, text: str) -> None:
    """Every choice's text holds this one."""
    for found in folded(exchange).texts:
        require(text in found, f"{shortened(found)} does not hold {shortened(text)}")


@each
def starts_with(exchange: Exchange, text: str) -> None:
    for found in folded(exchange).texts:
        require(found.startswith(text), f"{shortened(found)} does not begin with {text!r}")


@each
def texts_start_with(exchange: Exchange, wanted: list[str]) -> None:
    """Each choice's text begins with its own of these."""
    texts = folded(exchange).texts
    require(len(texts) == len(wanted), f"{len(texts)} choices instead of {len(wanted)}")
    for text, beginning in zip(texts, wanted, strict=True):
        require(text.startswith(beginning), f"{shortened(text)} does not begin with {beginning!r}")


@each
def empty_text(exchange: Exchange, wanted: bool) -> None:
    """No choice has a text, or every one has."""
    for found in folded(exchange).texts:
        require((not found) == wanted, f"the text is {shortened(found)}")


@each
def whole_characters(exchange: Exchange, wanted: bool) -> None:
    """No piece of a stream ends in the middle of a character."""
    text = "".join(folded(exchange).texts)
    require(not BROKEN_CHARACTER.search(text), f"a character is broken: {shortened(text)}")
    if text.isascii():
        raise Unsuitable(f"the text is ASCII alone: {shortened(text)}")


@across
def reveals(exchanges: Mapping[str, Exchange], wanted: Mapping[str, Any]) -> None:
    """`shown` has a special token after what `plain` says; no `hidden` answer has that token."""
    plain, shown = answers_of(exchanges, [wanted["plain"], wanted["shown"]])
    rest = shown.first.text.removeprefix(plain.first.text)
    token = SPECIAL_TOKEN.search(rest)
    if token is None:
        raise Broken(f"no special token is shown: {shortened(shown.first.text)}")
    for hidden in answers_of(exchanges, wanted["hidden"]):
        require(bool(hidden.first.text), "the text is empty")
        found = token[0] in hidden.first.text
        require(not found, f"{token[0]} is not skipped: {shortened(hidden.first.text)}")


@each
def json_text(exchange: Exchange, schema: dict[str, Any]) -> None:
    """Each choice's text is JSON that meets the schema."""
    for text in folded(exchange).texts:
        try:
            value = json.loads(text)
        except ValueError:
            raise Broken(f"the text is not JSON: {shortened(text)}") from None
        faults = list(Draft202012Validator(schema).iter_errors(value))
        require(not faults, faults[0].message if faults else "")


@each
def one_of(exchange: Exchange, allowed: list[str]) -> None:
    for text in folded(exchange).texts:
        require(text in allowed, f"the text is {shortened(text)}, not one of {allowed}")
