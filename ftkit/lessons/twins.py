"""Two ways to search for near-duplicates without comparing all pairs, beside the pairs that there are.

Knows texts alone; how the searches work is `data`'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftkit import data, tables


@tables.shown
@dataclass(frozen=True)
class TwinSearch:
    """How many near-duplicate pairs there are, how many each search found and took wrongly, and one that was missed."""

    pairs: int
    searches: Mapping[str, tuple[int, int]]
    missed: str

    def _parts(self) -> list[tables.Table | str]:
        rows = [(name, found, wrong) for name, (found, wrong) in self.searches.items()]
        caption = f"{self.pairs} pairs share at least {data.THRESHOLD:.0%} of their runs of five words"
        return [tables.Table(("search", "found", "taken wrongly"), rows, caption=caption), self.missed]


def search_twins(texts: Sequence[str]) -> TwinSearch:
    """Search `texts` with MinHash, whose candidates are compared exactly, and with SimHash, whose are not."""
    truth = data.near_pairs(texts, method="exact").rows
    bits = data.close_pairs(texts).rows
    found = {"MinHash, 16 bands of 8": data.near_pairs(texts, method="minhash").rows, "SimHash, 3 of 64 bits": bits}
    searches = {name: (len(rows & truth), len(rows - truth)) for name, rows in found.items()}
    missed = "SimHash missed no pair."
    if truth - bits:
        one, other = (texts[place] for place in min(truth - bits))
        alike = data.jaccard(data.word_shingles(one), data.word_shingles(other))
        apart = data.distance(data.simhash(one), data.simhash(other))
        words = ", ".join(sorted(set(one.split()) ^ set(other.split())))
        missed = f"A pair that SimHash missed: {alike:.0%} alike, {apart} bits apart. Only one text has: {words}."
    return TwinSearch(len(truth), searches, missed)
