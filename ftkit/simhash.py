"""SimHash, to compare with MinHash: one 64-bit fingerprint a text, alike texts a few bits apart.

For the lesson in notebook 07: MinHash finds more of the true pairs and fewer false ones, so `clean` uses that.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ftkit.minhash import equal_groups
from ftkit.similar import Pair, Pairs, shingles

BITS = 64
DISTANCE = 3
_BLOCKS = 4  # three differing bits leave at least one of four blocks equal


def simhash(text: str) -> int:
    """Fingerprint of 64 bits: each bit is the majority over the text's word 5-grams (Charikar 2002)."""
    import numpy as np

    row = shingles(text)
    if len(row) == 0:
        return 0
    bits = np.unpackbits(row.view(np.uint8).reshape(-1, 8), axis=1)
    return int.from_bytes(np.packbits(2 * bits.sum(axis=0) > len(row)).tobytes(), "big")


def distance(a: int, b: int) -> int:
    """Bits in which two fingerprints differ, 0 to 64 (Hamming distance)."""
    return (a ^ b).bit_count()


def close_pairs(texts: Sequence[str], across: int | None = None, most: int = DISTANCE) -> Pairs:
    """Pairs of texts whose fingerprints differ in at most `most` bits (up to 3); nothing is verified.

    `similarity` is the share of equal bits.
    """
    import numpy as np

    prints = [simhash(text) for text in texts]
    seen, pairs = set(), []
    for bucket in _blocks(np.array(prints, dtype=np.uint64)):
        for place, i in enumerate(bucket):
            for j in bucket[place + 1 :]:
                apart = distance(prints[i], prints[j])
                if (i, j) in seen or apart > most or (across is not None and (i < across) == (j < across)):
                    continue
                seen.add((i, j))
                pairs.append(Pair(i, j, 1 - apart / BITS))
    ordered = tuple(sorted(pairs, key=lambda p: (p.first, p.second)))
    return Pairs(ordered, len(texts), 1 - most / BITS, "simhash", len(seen), 0)


def _blocks(prints: Any) -> Iterator[list[int]]:
    import numpy as np

    width = BITS // _BLOCKS
    for block in range(_BLOCKS):
        yield from equal_groups((prints >> np.uint64(block * width)) & np.uint64((1 << width) - 1))
