"""Choices, ends and counts of an answer."""

import json
from collections.abc import Mapping
from itertools import pairwise

from tenuto.conformance.answer import Choice, folded
from tenuto.conformance.checks.registry import across, answers_of, each, require, require_equal
from tenuto.conformance.exchange import Broken, Exchange, shortened


@each
def choices(exchange: Exchange, count: int) -> None:
    """So many choices, numbered from 0."""
    indexes = [choice.index for choice in folded(exchange).choices]
    require_equal("the choices' indexes", indexes, list(range(count)))


@each
def finish(exchange: Exchange, wanted: str) -> None:
    """Every choice ends once, and for this reason."""
    for choice in folded(exchange).choices:
        require_equal(f"choice {choice.index}'s finish_reason", choice.reasons, [wanted])


@each
def usage(exchange: Exchange, wanted: Mapping[str, int]) -> None:
    """Exact counts by name."""
    answer = folded(exchange)
    for name, count in wanted.items():
        require_equal(f"usage.{name}", answer.used(name), count)


@each
def usage_at_least(exchange: Exchange, wanted: Mapping[str, int]) -> None:
    answer = folded(exchange)
    for name, count in wanted.items():
        found = answer.used(name)
        require(found >= count, f"usage.{name} is {found}, less than {count}")


@each
def usage_adds_up(exchange: Exchange, wanted: bool) -> None:
    """Prompt tokens and completion tokens are above 0, and make the total."""
    answer = folded(exchange)
    prompt, completion = answer.used("prompt_tokens"), answer.used("completion_tokens")
    require(prompt > 0 and completion > 0, f"a count is 0: {shortened(answer.usage)}")
    require_equal("usage.total_tokens", answer.used("total_tokens"), prompt + completion)


@across
def fewer_tokens(exchanges: Mapping[str, Exchange], names: list[str]) -> None:
    """Each answer has fewer completion tokens than the next."""
    counts = [answer.used("completion_tokens") for answer in answers_of(exchanges, names)]
    require(
        all(a < b for a, b in pairwise(counts)),
        f"the completion tokens do not rise: {dict(zip(names, counts, strict=True))}",
    )


@each
def token_ids(exchange: Exchange, wanted: bool) -> None:
    """Each choice carries the ids of its tokens, as many as the usage says."""
    answer = folded(exchange)
    count = sum(len(choice.token_ids) for choice in answer.choices)
    require_equal("the number of token_ids", count, answer.used("completion_tokens"))


@each
def logprobs(exchange: Exchange, wanted: Mapping[str, int]) -> None:
    """One entry per completion token (with `echo` per prompt token too), each a log-probability
    with `top` alternatives or one more: the chosen token is always among them."""
    answer = folded(exchange)
    entries = sum(len(choice.logprobs) for choice in answer.choices)
    counted = answer.used("completion_tokens")
    if wanted.get("echo"):
        counted += answer.used("prompt_tokens")
    require_equal("the number of log-probabilities", entries, counted)
    for choice in answer.choices:
        require(max(choice.logprobs) <= 0, f"a log-probability is above 0: {choice.logprobs}")
        require_equal("the number of tokens", len(choice.tokens), len(choice.logprobs))
        for top in filter(None, choice.top):
            allowed = (wanted["top"], wanted["top"] + 1)
            require(len(top) in allowed, f"{len(top)} alternatives instead of {wanted['top']}")


@each
def no_logprobs(exchange: Exchange, wanted: bool) -> None:
    for choice in folded(exchange).choices:
        require(not choice.logprobs, "there are log-probabilities that nobody asked for")


@each
def greedy_is_likeliest(exchange: Exchange, wanted: bool) -> None:
    """Each chosen token is as likely as the best of the alternatives."""
    for choice in folded(exchange).choices:
        for logprob, top in zip(choice.logprobs, choice.top, strict=True):
            best = max(likelihood for _, likelihood in top)
            require(
                logprob >= best, f"a token of {logprob:.3f} where one of {best:.3f} was at hand"
            )


@each
def prompt_logprobs(exchange: Exchange, wanted: bool) -> None:
    """One entry per prompt token, of the answer or of its choice."""
    answer = exchange.json
    entries = answer.get("prompt_logprobs") or answer["choices"][0].get("prompt_logprobs")
    require(bool(entries), "there are no prompt_logprobs")
    require_equal("their number", len(entries), folded(exchange).used("prompt_tokens"))


@each
def tool_call(exchange: Exchange, name: str) -> None:
    """One call of this function, whose arguments are a JSON object."""
    calls = [call for choice in folded(exchange).choices for call in choice.tool_calls]
    names = [call["function"]["name"] for call in calls if call.get("function", {}).get("name")]
    require_equal("the called functions", names, [name])
    text = "".join(call.get("function", {}).get("arguments") or "" for call in calls)
    try:
        arguments = json.loads(text)
    except ValueError:
        raise Broken(f"the arguments are not JSON: {shortened(text)}") from None
    require(isinstance(arguments, dict), f"the arguments are no object: {shortened(text)}")


@each
def entry_tokens(exchange: Exchange, wanted: bool) -> None:
    """The tokens of the log-probabilities make the text. Some tokenizers leave out the space before
    a token that stands alone."""
    for choice in folded(exchange).choices:
        joined = _bytes_of(choice) or "".join(choice.tokens)
        require(
            joined.strip() == choice.text.strip(),
            f"the tokens make {shortened(joined)}, the text is {shortened(choice.text)}",
        )


def _bytes_of(choice: Choice) -> str:
    """Of parts of characters the bytes say more than the texts."""
    pieces = [piece for piece in choice.token_bytes if piece is not None]
    complete = bool(pieces) and len(pieces) == len(choice.tokens)
    return b"".join(map(bytes, pieces)).decode(errors="replace") if complete else ""
