"""What the tasks of `scale_data` do: read rows, cut them into words, mark all but firsts, write them.

Steps are plain callables of `(documents, rank, world_size)`, which datatrove takes beside its own; they import it late and
travel to other processes and machines by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit import readers, storage
from ftkit.errors import DataError
from ftkit.scale_shards import block, converted, write_rows
from ftkit.shingles import WORDS, words
from ftkit.texts import text_of


@dataclass(frozen=True)
class Read:
    """First step: the rows of this task's shards as datatrove's documents, the row itself in their metadata.

    datatrove's own reader passes over broken lines in silence, and over the rest of a file behind a byte that is no UTF-8.
    """

    shards: tuple[str, ...] = field(repr=False)
    mapping: Mapping[str, str] | None
    broken: str | None = None  # folder that gets a list of the rows that cannot be used

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield documents; neighbouring shards belong to one task, so that tasks keep the order of the rows."""
        from datatrove.data import Document

        notes: list[str] = []
        for i in block(len(self.shards), rank, world_size):
            path = Path(self.shards[i])
            for place, given in readers.read(path):
                try:
                    row = converted(given, self.mapping)
                except DataError as error:
                    notes.append(f"{path.name} {place} {' '.join(str(error).split())}\n")
                else:
                    yield Document(text=text_of(row["messages"]), id=f"{path.name} {place}", metadata={"row": row})
        if self.broken:
            storage.write_text(Path(self.broken) / f"{rank:05d}.txt", "".join(notes))


@dataclass(frozen=True)
class Words:
    """Stands in for datatrove's word tokenizers: the words of `shingles`, so that both make the same 5-grams."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words; fewer than 5 are filled up with empty ones, which makes a short text one shingle."""
        found = words(text)
        return found + [""] * (WORDS - len(found)) if 0 < len(found) < WORDS else found


@dataclass(frozen=True)
class KeepFirst:
    """Marks all rows of a cluster but its first for removal; datatrove would keep the root of its union-find.

    Clusters are numbered in the order of their first rows, so a number that is not higher than all before it was there.
    """

    clusters: str

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write `<task>.remove` (positions) for each `<task>.clusters` (position and cluster); 32-bit, little-endian."""
        import numpy as np

        highest = -1
        for path in sorted(Path(self.clusters).glob("*.clusters")):
            position, cluster = np.fromfile(path, dtype="<u4").reshape(-1, 2).astype(np.int64).T
            before = np.maximum.accumulate(np.concatenate([[highest], cluster]))
            position[cluster <= before[:-1]].astype("<u4").tofile(path.with_suffix(".remove"))
            highest = int(before[-1])


@dataclass(frozen=True)
class Write:
    """Last step: one JSONL file of `messages` and the other columns a task."""

    folder: str

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write the rows of all documents."""
        write_rows(Path(self.folder) / f"{rank:05d}.jsonl", (document.metadata["row"] for document in documents))
