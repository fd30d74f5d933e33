"""MinHash: signatures whose agreement estimates Jaccard similarity, and the bands that find candidates among many.

Knows sets of 64-bit hashes; `similar` makes them from text and compares candidates exactly.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ftkit.errors import MissingExtra

BANDS, ROWS = 16, 8  # at Jaccard 0.8 a pair shares a band with 1 - (1 - 0.8**8)**16 = 0.947, at 0.85 with 0.993
MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: spreads hashes (Knuth)
_SEED = 42


def signatures(batches: Iterable[tuple[Any, Any]], method: str = "minhash") -> Any:
    """MinHash signatures, 128 hashes a set: an array of shape (sets, 128), dtype uint64.

    Args:
        batches: pairs of all hashes of many sets in one array, and the offsets at which each set begins and ends. An empty
            set gets a signature of its own, so that it resembles nothing.
        method: "minhash" (rensa, or datasketch where that is missing) or "datasketch".

    Raises:
        MissingExtra: neither is installed.
    """
    import numpy as np

    sketch = _sketcher(method)
    parts, lonely = [], itertools.count(2**63)
    for hashes, offsets in batches:
        matrix = sketch(hashes, offsets)
        for i in np.flatnonzero(offsets[1:] == offsets[:-1]):
            matrix[i] = np.uint64(next(lonely))
        parts.append(matrix)
    return np.concatenate(parts) if parts else np.zeros((0, BANDS * ROWS), dtype=np.uint64)


def rows_for(threshold: float) -> int:
    """Hashes a band, fewer for a lower threshold: 8 from 0.8 on, 4 from 0.55 (finds 93 % there), else 2."""
    return ROWS if threshold >= 0.8 else 4 if threshold >= 0.55 else 2


def band_buckets(matrix: Any, rows: int = ROWS) -> Iterator[list[int]]:
    """Positions of texts that agree in all `rows` hashes of a band, for each band (locality-sensitive hashing)."""
    import numpy as np

    for start in range(0, matrix.shape[1], rows):
        key = np.zeros(len(matrix), dtype=np.uint64)
        for column in range(start, start + rows):
            key = (key ^ matrix[:, column]) * np.uint64(MULTIPLIER)
            key ^= key >> np.uint64(29)
        yield from equal_groups(key)


def equal_groups(keys: Any) -> Iterator[list[int]]:
    """Positions of equal keys, for each key that occurs more than once; positions ascend."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else np.array([], int)
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield order[start:end].tolist()


def _sketcher(method: str) -> Callable[[Any, Any], Any]:
    import numpy as np

    if method == "minhash":
        try:
            from rensa import RMinHash
        except ImportError:
            return _sketcher("datasketch")  # the same sketch, more slowly

        def sketch(hashes: Any, offsets: Any) -> Any:
            """Signatures by rensa."""
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, BANDS * ROWS, _SEED)
            values, size = itertools.chain.from_iterable(matrix.to_rows()), BANDS * ROWS
            return np.fromiter(values, dtype=np.uint64, count=(len(offsets) - 1) * size).reshape(-1, size)

        return sketch
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise MissingExtra("Near-duplicates among more than 20,000 texts need rensa. Run: pip install rensa") from error

    def slowly(hashes: Any, offsets: Any) -> Any:
        """Signatures by datasketch."""
        rows = [hashes[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]
        sketches = [MinHash(num_perm=BANDS * ROWS, seed=_SEED, hashfunc=_low_bits) for _ in rows]
        for one, row in zip(sketches, rows, strict=True):
            one.update_batch(row)
        return np.array([one.hashvalues for one in sketches], dtype=np.uint64)

    return slowly


def _low_bits(value: int) -> int:
    return value & 0xFFFFFFFF  # datasketch wants 32 bits
