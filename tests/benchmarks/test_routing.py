"""The prefix cache of a scripted replica."""

from scripts.benchmarks.routing import BLOCK_TOKENS, Cache

PROMPT = list(range(10 * BLOCK_TOKENS))


def test_whole_blocks_of_the_beginning_are_found() -> None:
    cache = Cache(max_blocks=100)
    assert cache.cached_tokens(PROMPT) == 0
    cache.keep(PROMPT[:-1])
    assert cache.cached_tokens([*PROMPT, 1]) == 9 * BLOCK_TOKENS
    assert cache.cached_tokens([1, *PROMPT]) == 0


def test_one_token_is_always_read() -> None:
    cache = Cache(max_blocks=100)
    cache.keep(PROMPT)
    assert cache.cached_tokens(PROMPT) == len(PROMPT) - 1


def test_the_end_of_what_was_used_least_lately_goes_first() -> None:
    cache = Cache(max_blocks=12)
    other = [token + 1 for token in PROMPT]
    cache.keep(other)
    cache.keep(PROMPT)
    assert cache.cached_tokens([*PROMPT, 1]) == len(PROMPT)
    assert cache.cached_tokens(other) == 2 * BLOCK_TOKENS
