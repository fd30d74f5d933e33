"""Which texts are nearly the same: shingles, MinHash candidates, exact Jaccard, clusters. Knows texts, no examples.

Two texts are near-duplicates when the Jaccard similarity of their word 5-grams reaches a threshold. Candidates come from
an inverted index of rare shingles (few texts, nothing missed) or from MinHash bands (many texts); every candidate is then
compared exactly, so that a sketch never decides.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ftkit import minhash
from ftkit.errors import ConfigError
from ftkit.shingles import batches, flat_shingles, jaccard, normalise, shingles, words

THRESHOLD = 0.8
EXACT_TEXTS = 20_000
METHODS = ("auto", "exact", "minhash", "datasketch")
_COMPARED = 64  # texts of one bucket that each newcomer is compared with; more would take for ever on boilerplate
__all__ = ["Pair", "Pairs", "flat_shingles", "jaccard", "join", "near_pairs", "normalise", "shingles", "words"]


@dataclass(frozen=True)
class Pair:
    """Two texts by their positions, `first < second`, with their similarity from 0 to 1."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class Pairs:
    """Verified near-duplicates, enough of them to build every cluster."""

    pairs: tuple[Pair, ...]
    texts: int
    threshold: float
    method: str
    compared: int
    skipped: int  # comparisons left out in buckets full of unlike texts; 0 means that nothing was left out

    def clusters(self) -> list[int]:
        """For each text the position of the first text of its cluster; a text without a twin stands for itself."""
        return join(self.texts, ((pair.first, pair.second) for pair in self.pairs))

    def __str__(self) -> str:
        return f"{len(self.pairs)} near-duplicate pairs among {self.texts} texts ({self.method}, threshold {self.threshold:g})"


def join(size: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `size` positions the first position that a chain of links leads to."""
    roots = _Union(size)
    for a, b in links:
        roots.join(a, b)
    return [roots.of(i) for i in range(size)]


def near_pairs(
    texts: Sequence[str], threshold: float = THRESHOLD, *, method: str = "auto", across: int | None = None
) -> Pairs:
    """Find near-duplicates; every pair's Jaccard similarity is exact and at least `threshold`.

    Args:
        texts: read one at a time, some of them again; nothing of them is kept.
        threshold: Jaccard similarity of word 5-grams, above 0 to 1.
        method: "exact" misses nothing; "minhash" (rensa) finds 99 % of the pairs at 0.8 or above and grows linearly;
            "datasketch" is the same with another library; "auto" is exact up to 20,000 texts.
        across: compare only texts before this position with texts from it on, and list all their pairs.

    Raises:
        ConfigError: an unknown method, or a threshold outside 0 to 1.
        MissingExtra: neither rensa nor datasketch is installed and there are too many texts for an exact search.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is not one of {', '.join(METHODS)}.")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold!r} is outside 0 to 1 (Jaccard similarity of word 5-grams).")
    if method == "auto":
        method = "exact" if len(texts) <= EXACT_TEXTS else "minhash"
    if method == "exact":
        known: Any = [shingles(text) for text in texts]
        buckets = _rare_buckets(known, threshold)
    else:
        known = lru_cache(maxsize=4096)(lambda i: shingles(texts[i]))
        buckets = minhash.band_buckets(minhash.signatures(map(flat_shingles, batches(texts)), method))
    look = known.__getitem__ if method == "exact" else known
    return _verified(buckets, look, len(texts), threshold, method, across)


def _rare_buckets(rows: list[Any], threshold: float) -> Iterator[list[int]]:
    """Texts that share one of their rarest shingles: prefix filtering, which loses no pair (Bayardo et al. 2007)."""
    import numpy as np

    filled = [row for row in rows if len(row)]
    if not filled:
        return
    _, ids, counts = np.unique(np.concatenate(filled), return_inverse=True, return_counts=True)
    place = np.cumsum([0, *(len(row) for row in rows)])
    keys, owners = [], []
    for i, row in enumerate(rows):
        if len(row) == 0:
            continue
        own = ids[place[i] : place[i + 1]]
        prefix = len(own) - int(np.ceil(threshold * len(own) - 1e-9)) + 1
        rare = own[np.lexsort((own, counts[own]))[:prefix]]
        rare = rare[counts[rare] > 1]
        keys.append(rare)
        owners.append(np.full(len(rare), i))
    owner = np.concatenate(owners)
    for group in minhash.equal_groups(np.concatenate(keys)):
        yield owner[group].tolist()


def _verified(
    buckets: Iterable[list[int]], look: Any, texts: int, threshold: float, method: str, across: int | None
) -> Pairs:
    """Compare the texts of each bucket, those of one cluster only once."""
    roots, pairs, seen = _Union(texts), [], set()
    compared = skipped = 0
    for bucket in buckets:
        leaders: list[int] = []  # texts of this bucket that are not alike
        for i in bucket:
            for other in leaders[:_COMPARED]:
                if across is not None and (i < across) == (other < across):
                    continue
                if (across is None and roots.of(i) == roots.of(other)) or (other, i) in seen:
                    continue
                seen.add((other, i))
                compared += 1
                similarity = _similarity(look(other), look(i), threshold)
                if similarity >= threshold:
                    roots.join(other, i)
                    pairs.append(Pair(other, i, similarity))
            skipped += max(0, len(leaders) - _COMPARED)
            if across is not None or all(roots.of(i) != roots.of(other) for other in leaders[:_COMPARED]):
                leaders.append(i)
    ordered = tuple(sorted(pairs, key=lambda p: (p.first, p.second)))
    return Pairs(ordered, texts, threshold, method, compared, skipped)


def _similarity(a: Any, b: Any, threshold: float) -> float:
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return 0.0  # even if the shorter lay wholly inside the longer
    return jaccard(a, b)


class _Union:
    """Disjoint sets whose representative is the smallest position (union-find with path halving)."""

    def __init__(self, size: int) -> None:
        self._above = array("q", range(size))

    def of(self, i: int) -> int:
        above = self._above
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.of(a), self.of(b)
        self._above[max(a, b)] = min(a, b)
