"""Hashes of prompts' beginnings, and which replica saw them."""

import itertools
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tenuto.engine.prefixes import GROWTH, MAX_HOLDERS, SHORTEST_TOKENS, Prefixes, prefix_hashes

prompts = st.lists(st.integers(0, 200_000), max_size=300)
REPLICAS = ("a", "b", "c")


@given(prompts, prompts, prompts)
def test_prompts_share_the_hashes_of_what_they_share(
    shared: list[int], one: list[int], other: list[int]
) -> None:
    common = prefix_hashes(shared)
    ones, others = prefix_hashes(shared + one), prefix_hashes(shared + other)
    assert ones[: len(common)] == others[: len(common)] == common
    first_different = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None
    )
    if first_different is not None:
        # A length that ends between where they part and their end tells them apart.
        num_same = len(prefix_hashes((shared + one)[: len(shared) + first_different]))
        assert not set(ones[num_same:]) & set(others[num_same:])


def test_little_is_lost_between_two_lengths() -> None:
    lengths = [len(prefix_hashes(range(n))) for n in range(2000)]
    ends = [n for n in range(1, 2000) if lengths[n] > lengths[n - 1]]
    assert ends[0] == SHORTEST_TOKENS
    # Ends are whole tokens.
    assert all(long <= short * GROWTH + 1 for short, long in itertools.pairwise(ends))
    assert len(prefix_hashes(range(100_000))) == 40


def test_a_prompt_shorter_than_a_block_has_none() -> None:
    assert prefix_hashes(range(SHORTEST_TOKENS - 1)) == ()


def test_salts_share_nothing() -> None:
    salts = ("", "key-1", "key-2")
    hashes = [hash_ for salt in salts for hash_ in prefix_hashes(range(100), salt)]
    assert len(set(hashes)) == len(hashes) > len(salts)


def test_every_process_makes_the_same() -> None:
    code = "from tenuto.engine.prefixes import prefix_hashes as p; print(p(range(99), 'salt'))"
    environment = {"PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == str(prefix_hashes(range(99), "salt"))


def test_the_longest_beginning_wins() -> None:
    prefixes = Prefixes[str]()
    prefixes.saw((1, 2, 3), "a")
    prefixes.saw((1, 2), "b")
    assert prefixes.find((1, 2, 3, 4), REPLICAS) == ["a"]
    assert prefixes.find((1, 2, 30), REPLICAS) == ["b", "a"]
    assert prefixes.find((10, 20), REPLICAS) == []
    assert prefixes.find((), REPLICAS) == []


def test_who_is_no_candidate_is_passed_over() -> None:
    prefixes = Prefixes[str]()
    prefixes.saw((1, 2, 3), "gone")
    prefixes.saw((1,), "a")
    assert prefixes.find((1, 2, 3), REPLICAS) == ["a"]
    assert prefixes.find((1, 2, 3), ["b"]) == []


def test_of_one_beginning_the_latest_holders_are_kept() -> None:
    prefixes = Prefixes[int]()
    for replica in range(MAX_HOLDERS + 1):
        prefixes.saw((1,), replica)
    prefixes.saw((1,), 1)
    expected = [1, *(replica for replica in range(MAX_HOLDERS, 1, -1))]
    assert prefixes.find((1,), range(MAX_HOLDERS + 1)) == expected


@given(st.lists(st.lists(st.integers(0, 30), max_size=8, unique=True), max_size=30))
def test_those_that_came_last_are_kept(seen: list[list[int]]) -> None:
    prefixes = Prefixes[str](max_hashes=10)
    for hashes in seen:
        prefixes.saw(hashes, "a")
    flat = [one for hashes in seen for one in hashes]
    last = list(dict.fromkeys(reversed(flat)))
    assert len(prefixes) == min(10, len(last))
    assert all(bool(prefixes.find([one], REPLICAS)) == (one in last[:10]) for one in last)
