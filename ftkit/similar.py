"""Which texts are nearly the same: shingles, MinHash candidates, exact Jaccard, clusters. Knows texts, no examples.

Two texts are near-duplicates when the Jaccard similarity of their word 5-grams reaches a threshold. Candidates come from
an inverted index of rare shingles (few texts, nothing missed) or from MinHash bands (many texts); every candidate is then
compared exactly, so that a sketch never decides.
"""

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import minhash
from ftkit.errors import ConfigError
from ftkit.shingles import batches, flat_shingles, jaccard, normalise, shingles, words

THRESHOLD = 0.8
EXACT_TEXTS = 20_000
METHODS = ("auto", "exact", "minhash", "datasketch")
_CHUNK = 2_000  # buckets whose texts are fetched at once
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
        known = _some_shingles(texts, range(len(texts)))
        return _verified(_rare_buckets(known, threshold), lambda _: known, len(texts), threshold, method, across)
    sketches = minhash.signatures(map(flat_shingles, batches(texts)), method)
    return _verified(
        minhash.band_buckets(sketches), lambda rows: _some_shingles(texts, rows), len(texts), threshold, method, across
    )


def _some_shingles(texts: Sequence[str], rows: Sequence[int]) -> dict[int, Any]:
    """The shingle sets of a few texts, made in batches."""
    import numpy as np

    found, place = {}, iter(rows)
    for batch in batches(texts[i] for i in rows):
        hashes, offsets = flat_shingles(batch)
        for start, end in itertools.pairwise(offsets.tolist()):
            found[next(place)] = np.unique(hashes[start:end])
    return found


def _rare_buckets(rows: dict[int, Any], threshold: float) -> Iterator[list[int]]:
    """Texts that share one of their rarest shingles: prefix filtering, which loses no pair (Bayardo et al. 2007)."""
    import numpy as np

    filled = [row for row in rows.values() if len(row)]
    if not filled:
        return
    _, ids, counts = np.unique(np.concatenate(filled), return_inverse=True, return_counts=True)
    place = np.cumsum([0, *map(len, rows.values())])
    keys, owners = [], []
    for i, row in rows.items():
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
    buckets: Iterator[list[int]],
    fetch: Callable[[list[int]], Any],
    texts: int,
    threshold: float,
    method: str,
    across: int | None,
) -> Pairs:
    """Compare the texts of each bucket, those of one cluster only once."""
    search = _Search(texts, threshold, across)
    while chunk := list(itertools.islice(buckets, _CHUNK)):
        fresh = [bucket for bucket in chunk if search.is_open(bucket)]
        known = fetch(sorted({i for bucket in fresh for i in bucket}))
        for bucket in fresh:
            search.compare(bucket, known)
    ordered = tuple(sorted(search.pairs, key=lambda p: (p.first, p.second)))
    return Pairs(ordered, texts, threshold, method, len(search.seen), search.skipped)


class _Search:
    """Pairs found so far, and the clusters that they make."""

    def __init__(self, texts: int, threshold: float, across: int | None) -> None:
        self.roots, self.threshold, self.across = _Union(texts), threshold, across
        self.pairs: list[Pair] = []
        self.seen: set[tuple[int, int]] = set()
        self.skipped = 0

    def wanted(self, a: int, b: int) -> bool:
        """Whether comparing these two can tell anything new."""
        if self.across is not None:
            return (a < self.across) != (b < self.across) and (a, b) not in self.seen
        return self.roots.of(a) != self.roots.of(b) and (a, b) not in self.seen

    def is_open(self, bucket: list[int]) -> bool:
        return len(bucket) > _COMPARED or any(self.wanted(a, b) for a, b in itertools.combinations(bucket, 2))

    def compare(self, bucket: list[int], known: Any) -> None:
        """Compare each text with those before it that stand for a cluster of this bucket."""
        leaders: list[int] = []
        for i in bucket:
            for other in leaders[:_COMPARED]:
                if not self.wanted(other, i):
                    continue
                self.seen.add((other, i))
                similarity = _similarity(known[other], known[i], self.threshold)
                if similarity >= self.threshold:
                    self.roots.join(other, i)
                    self.pairs.append(Pair(other, i, similarity))
            self.skipped += max(0, len(leaders) - _COMPARED)
            if self.across is not None or all(
                self.roots.of(i) != self.roots.of(other) for other in leaders[:_COMPARED]
            ):
                leaders.append(i)


def _similarity(a: Any, b: Any, threshold: float) -> float:
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return 0.0  # even if the shorter lay wholly inside the longer
    return jaccard(a, b)


class _Union:
    """Disjoint sets whose representative is the smallest position (union-find with path halving)."""

    def __init__(self, size: int) -> None:
        self._above = array("q", range(size))

    def of(self, i: int) -> int:
        """The representative of a position."""
        above = self._above
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.of(a), self.of(b)
        self._above[max(a, b)] = min(a, b)
