"""Which texts are nearly the same: shingles, MinHash candidates, exact Jaccard, clusters. Knows texts, no examples.

Two texts are near-duplicates when the Jaccard similarity of their word 5-grams reaches a threshold. Candidates come
from an inverted index of rare shingles (few texts, nothing missed) or from MinHash bands (many texts); every candidate
is then compared exactly, so that a sketch never decides. SimHash stands beside them for the lesson: its fingerprints
decide unverified.
"""

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ftkit.data.shingles import WORDS, Texts, batches, distinct, flat_shingles, jaccard, shingled, word_shingles
from ftkit.errors import ConfigError, MissingExtra
from ftkit.tables import visible

THRESHOLD = 0.8
EXACT_TEXTS = 20_000
METHODS = ("auto", "exact", "minhash")
_FETCHED = 20_000  # texts whose shingles are held at once
_COMPARED = 64  # comparisons of a text in one bucket; more would take for ever on boilerplate
_COMPARED_ACROSS = 2_000

_MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: spreads hashes (Knuth)
_SEED = 42


class Sketch(NamedTuple):
    """Words of a shingle, bands of a signature, hashes of a band.

    At Jaccard 0.8 a pair shares a band with 1 - (1 - 0.8**8)**16 = 0.947, at 0.85 with 0.993.
    """

    words: int = WORDS
    bands: int = 16
    rows: int = 8


SKETCH = Sketch()

BITS = 64
DISTANCE = 3
_BLOCKS = 4  # three differing bits leave at least one of four blocks equal


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
    skipped: int  # comparisons left out among many unlike texts that share boilerplate; 0: nothing was left out

    @property
    def rows(self) -> set[tuple[int, int]]:
        """The pairs as positions alone."""
        return {(pair.first, pair.second) for pair in self.pairs}

    def clusters(self) -> list[int]:
        """For each text the position of the first text of its cluster; a text without a twin stands for itself."""
        return join(self.texts, self.rows)

    def groups(self) -> list[list[int]]:
        """The clusters of two texts or more, as ascending positions."""
        return grouped(self.clusters(), least=2)

    def __str__(self) -> str:
        how = f"{self.method}, threshold {self.threshold:g}"
        return visible(f"{len(self.pairs)} near-duplicate pairs among {self.texts} texts ({how})")


def join(size: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `size` positions the first position that a chain of links leads to."""
    roots = _Union(size)
    for a, b in links:
        roots.join(a, b)
    return [roots.of(i) for i in range(size)]


def grouped(labels: Iterable[int], least: int = 1) -> list[list[int]]:
    """Positions of equal labels, by their first; without groups of fewer than `least`."""
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    return [group for group in groups.values() if len(group) >= least]


def near_pairs(
    texts: Sequence[str],
    threshold: float = THRESHOLD,
    *,
    method: str = "auto",
    across: int | None = None,
    apart: int | None = None,
) -> Pairs:
    """Find near-duplicates; every pair's Jaccard similarity is exact and at least `threshold`.

    Texts are read one at a time, some of them again; nothing of them is kept. The method "exact" misses nothing while
    `skipped` is 0; "minhash" (rensa) grows linearly and finds 95 % of the pairs that lie at a threshold of 0.8, nearly
    all that lie above; "auto" is exact up to 20,000 texts. With `across` only texts before this position are compared
    with texts from it on, and all their pairs listed; with `apart` never.

    Raises:
        ConfigError: an unknown method, or a threshold outside 0 to 1.
        MissingExtra: rensa is not installed and there are too many texts for an exact search.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is not one of {', '.join(METHODS)}.")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold!r} is outside 0 to 1 (Jaccard similarity of word 5-grams).")
    if method == "auto":
        method = usual_method(len(texts))
    if method == "exact":
        known = _some_shingles(texts, range(len(texts)))
        buckets = _rare_buckets(known, threshold)
    else:
        # hashes a band: 8 at a threshold from 0.8 on, 4 from 0.55 on (finds 93 % there), else 2
        rows = next(rows for least, rows in ((0.8, SKETCH.rows), (0.55, 4), (0, 2)) if threshold >= least)
        keys = band_keys(shingled(texts), rows)
        buckets = itertools.chain.from_iterable(map(_equal_groups, keys.T))
    buckets = _once(buckets, apart)
    search = _Search(len(texts), threshold, across)
    for chunk in batches((bucket for bucket in buckets if search.is_open(bucket)), _FETCHED):
        if method != "exact":
            known = _some_shingles(texts, sorted(set().union(*chunk)))
        for bucket in chunk:
            search.compare(bucket, known)
    ordered = tuple(sorted(search.pairs, key=lambda p: (p.first, p.second)))
    return Pairs(ordered, len(texts), threshold, method, len(search.seen), search.skipped)


def simhash(text: str) -> int:
    """Fingerprint of 64 bits: each bit is the majority over the text's word 5-grams (Charikar 2002)."""
    import numpy as np

    row = word_shingles(text)
    if len(row) == 0:
        return 0
    bits = np.unpackbits(row.view(np.uint8).reshape(-1, 8), axis=1)
    return int.from_bytes(np.packbits(2 * bits.sum(axis=0) > len(row)).tobytes(), "big")


def distance(a: int, b: int) -> int:
    """Bits in which two fingerprints differ, 0 to 64 (Hamming distance)."""
    return (a ^ b).bit_count()


def close_pairs(texts: Sequence[str]) -> Pairs:
    """Pairs of texts whose fingerprints differ in at most three bits; nothing is verified.

    `similarity` is the share of equal bits.
    """
    import numpy as np

    prints = [simhash(text) for text in texts]
    apart: dict[tuple[int, int], int] = {}
    width, fingerprints = BITS // _BLOCKS, np.array(prints, dtype=np.uint64)
    for block in range(_BLOCKS):
        keys = (fingerprints >> np.uint64(block * width)) & np.uint64((1 << width) - 1)
        for bucket in _equal_groups(keys):
            apart |= {(i, j): distance(prints[i], prints[j]) for i, j in itertools.combinations(bucket, 2)}
    pairs = tuple(Pair(i, j, 1 - bits / BITS) for (i, j), bits in sorted(apart.items()) if bits <= DISTANCE)
    return Pairs(pairs, len(texts), 1 - DISTANCE / BITS, "simhash", len(apart), 0)


def usual_method(texts: int) -> str:
    """What "auto" means for so many texts."""
    return "exact" if texts <= EXACT_TEXTS else "minhash"


def _once(buckets: Iterable[list[int]], border: int | None) -> Iterator[list[int]]:
    """The buckets, cut where they cross the border, each once: twins share most of their bands."""
    seen: set[tuple[int, ...]] = set()
    for bucket in buckets:
        cut = 0 if border is None else bisect.bisect_left(bucket, border)  # positions ascend
        for side in (tuple(bucket[:cut]), tuple(bucket[cut:])):
            if len(side) > 1 and side not in seen:
                seen.add(side)
                yield list(side)


def _some_shingles(texts: Sequence[str], rows: Sequence[int]) -> dict[int, Any]:
    """The shingle sets of a few texts, made in batches."""
    found, place = {}, iter(rows)
    for batch in batches(texts.at(rows) if isinstance(texts, Texts) else (texts[i] for i in rows)):
        hashes, offsets = flat_shingles(batch)
        for start, end in itertools.pairwise(offsets.tolist()):
            found[next(place)] = distinct(hashes[start:end])
    return found


def _rare_buckets(rows: dict[int, Any], threshold: float) -> Iterator[list[int]]:
    """Texts that share one of their rarest shingles: prefix filtering, which loses no pair (Bayardo et al. 2007)."""
    import numpy as np

    filled = {i: row for i, row in rows.items() if len(row)}
    if not filled:
        return
    _, ids, counts = np.unique(np.concatenate(list(filled.values())), return_inverse=True, return_counts=True)
    ends = np.cumsum([len(row) for row in filled.values()])
    keys, owners = [], []
    for i, own in zip(filled, np.split(ids, ends[:-1]), strict=True):
        prefix = len(own) - int(np.ceil(threshold * len(own) - 1e-9)) + 1
        rare = own[np.lexsort((own, counts[own]))[:prefix]]
        rare = rare[counts[rare] > 1]
        keys.append(rare)
        owners.append(np.full(len(rare), i))
    owner = np.concatenate(owners)
    for group in _equal_groups(np.concatenate(keys)):
        yield owner[group].tolist()


class _Search:
    """Pairs found so far, and the clusters that they make."""

    def __init__(self, texts: int, threshold: float, across: int | None) -> None:
        self.roots, self.threshold, self.across = _Union(texts), threshold, across
        self.pairs: list[Pair] = []
        self.seen: set[tuple[int, int]] = set()
        self.skipped = 0

    def is_open(self, bucket: list[int]) -> bool:
        """Whether a bucket may hold a pair that tells something new."""
        if self.across is not None:
            return bucket[0] < self.across <= bucket[-1]  # positions ascend
        first = self.roots.of(bucket[0])
        return any(self.roots.of(i) != first for i in bucket)

    def compare(self, bucket: list[int], known: Any) -> None:
        """Compare the texts of a bucket: across the border, or with those of other clusters."""
        if self.across is not None:
            cut = bisect.bisect_left(bucket, self.across)
            for i in bucket[cut:]:
                for other in bucket[: min(cut, _COMPARED_ACROSS)]:
                    self._alike(other, i, known)
                self.skipped += max(0, cut - _COMPARED_ACROSS)
            return
        clusters: list[list[int]] = []  # the texts of this bucket so far, by cluster
        for i in bucket:
            clusters = self._placed(i, clusters, known)

    def _placed(self, i: int, clusters: list[list[int]], known: Any) -> list[list[int]]:
        """The clusters with `i` among them; those that it links become one."""
        own, others, left = [i], [], _COMPARED
        for place, members in enumerate(clusters):
            if left <= 0:
                self.skipped += len(clusters) - place
                others += clusters[place:]
                break
            linked = self.roots.of(i) == self.roots.of(members[0])
            for other in () if linked else members[:left]:
                left -= (other, i) not in self.seen
                if self._alike(other, i, known):
                    linked = True
                    break
            if linked:
                own = members + own
            else:
                others.append(members)
        return [*others, own]

    def _alike(self, a: int, b: int, known: Any) -> bool:
        if (a, b) in self.seen:
            return False  # compared before: linked then, or not alike
        self.seen.add((a, b))
        short, long = sorted((len(known[a]), len(known[b])))
        if short < self.threshold * long - 1e-9:
            return False  # even if the shorter lay wholly inside the longer
        similarity = jaccard(known[a], known[b])
        if similarity < self.threshold:
            return False
        self.roots.join(a, b)
        self.pairs.append(Pair(a, b, similarity))
        return True


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


def band_keys(batches: Iterable[tuple[Any, Any]], rows: int = SKETCH.rows) -> Any:
    """A key for each band of MinHash signatures by rensa (128 hashes): an array of shape (sets, bands), dtype uint64.

    Args:
        batches: pairs of all hashes of many sets in one array, and the offsets at which each set begins and ends. An
            empty set gets keys of its own, so that it resembles nothing.
        rows: hashes a band; texts that agree in all of them share the band's key.

    Raises:
        MissingExtra: rensa is not installed.
    """
    import numpy as np

    try:
        from rensa import RMinHash
    except ImportError as error:
        raise MissingExtra("Near-duplicates among more than 20,000 texts need rensa. Run: pip install rensa") from error
    width = SKETCH.bands * SKETCH.rows
    parts, lonely = [np.zeros((0, width // rows), dtype=np.uint64)], itertools.count()
    for hashes, offsets in batches:
        signatures = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, width, _SEED).to_rows()
        values = b"".join(array("I", row).tobytes() for row in signatures)  # three times as quick as numpy on the lists
        pairs = np.frombuffer(values, dtype=np.uint64).reshape(-1, width // rows, rows // 2)
        keys = np.zeros(pairs.shape[:2], dtype=np.uint64)
        for place in range(rows // 2):
            keys = (keys ^ pairs[:, :, place]) * np.uint64(_MULTIPLIER)
            keys ^= keys >> np.uint64(29)
        for i in np.flatnonzero(offsets[1:] == offsets[:-1]):
            keys[i] = np.uint64(next(lonely))
        parts.append(keys)
    return np.concatenate(parts)


def _equal_groups(keys: Any) -> Iterator[list[int]]:
    """Positions of equal keys, for each key that occurs more than once; positions ascend."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else np.array([], int)
    ends = np.append(starts[1:], len(keys))
    several = ends - starts > 1
    positions = order.tolist()
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        yield positions[start:end]
