"""Which replica has seen which beginnings of prompts. Pure; knows neither Ray nor requests."""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

# Engines cache blocks of so many tokens: nothing shorter can be found again.
SHORTEST_TOKENS, GROWTH = 16, 1.25
# Each costs 0.2 kB. A turn of a conversation adds one or two, the first of them all.
MAX_HASHES = 100_000
# Of one beginning, the latest: who was replaced long ago falls out.
MAX_HOLDERS = 8

Replica = TypeVar("Replica", bound=Hashable)


def prefix_hashes(token_ids: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """Of the prompt's beginnings at geometric lengths, shortest first; the same in every process.

    Prompts that share a beginning share its hashes under the same salt, which must differ for
    requests that share no cache, as those to different adapters.
    """
    salted = blake2b(salt.encode(), digest_size=8).digest()
    chained, begin, hashes = int.from_bytes(salted), 0, []
    for end in _lengths(len(token_ids)):
        # Python salts the hashes of texts for each process, those of numbers never.
        chained = hash((chained, *token_ids[begin:end]))
        hashes.append(chained)
        begin = end
    return tuple(hashes)


def _lengths(num_tokens: int) -> Iterator[int]:
    length = float(SHORTEST_TOKENS)
    while (end := int(length)) <= num_tokens:
        yield end
        length *= GROWTH


class Prefixes(Generic[Replica]):
    """Remembers a bounded number of hashes, those that came last."""

    def __init__(self, max_hashes: int = MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._holders: OrderedDict[int, tuple[Replica, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def saw(self, hashes: Sequence[int], replica: Replica) -> None:
        for prefix in hashes:
            known = self._holders.pop(prefix, ())
            if known[:1] != (replica,):
                others = [holder for holder in known if holder != replica]
                known = (replica, *others[: MAX_HOLDERS - 1])
            self._holders[prefix] = known
        while len(self._holders) > self._max_hashes:
            self._holders.popitem(last=False)

    def find(self, hashes: Sequence[int], candidates: Collection[Replica]) -> list[Replica]:
        """Those of `candidates` that saw the longest beginning that any of them saw."""
        for prefix in reversed(hashes):
            held = [who for who in self._holders.get(prefix, ()) if who in candidates]
            if held:
                return held
        return []
