"""Whether a test set can be trusted: rows of it that training has seen, exactly or nearly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import tables
from ftkit.data import shingles, similarity
from ftkit.data.loading import combined
from ftkit.data.shingles import Texts
from ftkit.errors import DataError

_SHOWN = 10
_NAMES = {"all": "prompt and answer", "prompt": "prompt"}


@dataclass(frozen=True)
class Overlap:
    """A test row and a training row (counted from 1) that are alike in `on`: "prompt" or "all" (prompt plus answer)."""

    test: int
    train: int
    on: str
    similarity: float
    test_text: str
    train_text: str


@tables.shown
@dataclass(frozen=True)
class LeakageReport:
    """Exact and near overlap between two parts of a dataset."""

    exact: tuple[Overlap, ...]
    near: tuple[Overlap, ...]
    train_rows: int
    test_rows: int
    threshold: float | None
    skipped: int = 0  # comparisons left out among rows full of boilerplate; 0: nothing was left out

    @property
    def leaked_rows(self) -> tuple[int, ...]:
        """Test rows, counted from 1, with an exact or near twin in training."""
        return tuple(sorted({o.test for o in self.exact + self.near}))

    def without_leaks(self, test: Any) -> Any:
        """The test rows that have no twin in training, in their order."""
        leaked = set(self.leaked_rows)
        return test.select([i for i in range(len(test)) if i + 1 not in leaked])

    def refuse_exact(self) -> None:
        """Stop here if the test set holds rows that training has seen.

        Raises:
            DataError: lists the pairs.
        """
        if self.exact:
            rows = {o.test for o in self.exact}
            pairs = (f"test row {o.test} = train row {o.train} ({_NAMES.get(o.on, o.on)})" for o in self.exact[:_SHOWN])
            listed = "\n  ".join(pairs)
            raise DataError(
                f"{len(rows)} of {self.test_rows} test rows are training rows too, so a score on them says nothing:"
                f"\n  {listed}\n"
                "Split with data.split, which keeps twins together, or take these rows out of one of the two."
            )

    def _parts(self) -> list[tables.Table | str]:
        overlaps = self.exact + self.near
        left_out = f" ({self.skipped} comparisons left out among rows full of boilerplate)" if self.skipped else ""
        fine = "○" if self.near or self.skipped else "✓"
        title = (
            f"{'✗' if self.exact else fine} {len(self.exact)} exact and {len(self.near)} near overlaps "
            f"between {self.train_rows} train and {self.test_rows} test rows{left_out}"
        )
        rows = [
            (o.test, o.train, _NAMES.get(o.on, o.on), f"{o.similarity:.0%}", o.test_text, o.train_text)
            for o in overlaps
        ]
        head = ("test row", "train row", "in", "alike", "test", "train")
        return [title, tables.Table(head, rows, prose=True)] if rows else [title]


def leakage(train: Any, test: Any, *, threshold: float | None = similarity.THRESHOLD) -> LeakageReport:
    """Compare every test row with every training row, on the prompt and on prompt plus answer.

    Exact means the same up to case, spaces, invisible characters and Unicode form; near is a Jaccard similarity of word
    5-grams of at least `threshold`, 0 to 1; None looks for exact overlaps alone, in a fraction of the time. A pair is
    listed once, on the larger part that agrees.
    """
    read = [name for name in ("messages", "text") if name in train.column_names and name in test.column_names]
    both, cut = combined([part.select_columns(read) for part in (train, test)]), len(train)
    skipped = 0
    exact: dict[tuple[int, int], Overlap] = {}
    near: dict[tuple[int, int], Overlap] = {}
    for on in ("all", "prompt"):
        texts = Texts(both, on)
        for pair in _equal(texts, cut):
            exact.setdefault(pair, _overlap(texts, *pair, cut, on, 1.0))
        if threshold is not None:
            found = similarity.near_pairs(texts, threshold, across=cut)
            skipped += found.skipped
            for twin in found.pairs:
                pair = twin.first, twin.second
                if pair not in exact and pair not in near:
                    near[pair] = _overlap(texts, *pair, cut, on, twin.similarity)
    near = {pair: overlap for pair, overlap in near.items() if pair not in exact}
    listed, close = (tuple(sorted(part.values(), key=lambda o: (o.test, o.train))) for part in (exact, near))
    return LeakageReport(listed, close, len(train), len(test), threshold, skipped)


def _equal(texts: Texts, cut: int) -> list[tuple[int, int]]:
    """Each test text with the first training text that equals it."""
    first: dict[int, int] = {}
    pairs = []
    for i, text in enumerate(texts):
        plain = shingles.normalise(text)
        place = first.setdefault(hash(plain), i) if i < cut else first.get(hash(plain))
        if i >= cut and place is not None and shingles.normalise(texts[place]) == plain:
            pairs.append((place, i))
    return pairs


def _overlap(texts: Sequence[str], first: int, second: int, cut: int, on: str, similarity: float) -> Overlap:
    return Overlap(second - cut + 1, first + 1, on, similarity, _begin(texts[second]), _begin(texts[first]))


def _begin(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 120 else flat[:119] + "…"
