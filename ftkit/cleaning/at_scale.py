"""Near-duplicates beyond one machine: our rows, words, 5-grams and bands for datatrove's four MinHash stages.

datatrove runs them on several processes, under Slurm or under Ray; this file says only what it shall read and compare,
so that it finds what `near_duplicates` finds. Unlike that rule, which compares every candidate exactly, datatrove takes
agreement in one band for proof: of pairs at Jaccard 0.7 it joins about 61 %, at 0.8 95 %, at 0.5 6 %. While all texts
fit one machine, `near_duplicates` is faster as well as exact. Needs `pip install 'ftkit[scale]'`.

```python
from ftkit.cleaning import at_scale

config, rows = at_scale.datatrove_config(), at_scale.DatatroveReader(shards)
signatures = [rows, MinhashDedupSignature("signatures", config, language=at_scale.datatrove_words())]  # a task a shard
pairs = [MinhashDedupBuckets("signatures", "pairs", config=config)]  # config.num_buckets tasks
clusters = [MinhashDedupCluster("pairs", "clusters", config)]  # one task
kept = [rows, MinhashDedupFilter("clusters"), JsonlWriter("kept", expand_metadata=True)]  # as many as for signatures
```
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ftkit import data, files
from ftkit.errors import MissingExtra


@dataclass(frozen=True)
class DatatroveReader:
    """First step of a pipeline: rows as datatrove's documents, with `messages` and the other columns in their metadata.

    Each task takes its part of `shards`, files that `data.load_examples` reads. The folder `broken` gets a list of the
    rows that cannot be used, which datatrove's own reader passes over in silence; without it such a row stops the task.
    """

    shards: tuple[str | Path, ...] = field(repr=False)
    mapping: Mapping[str, str] | None = None
    broken: str | Path | None = None

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the documents of this task's shards."""
        document = _datatrove("data").Document
        notes: list[str] = []
        for path in map(Path, self.shards[rank::world_size]):
            loaded = data.read_rows(path, mapping=self.mapping)
            if self.broken is None:
                loaded.refuse_broken("broken='a folder'")
            notes += [
                f"{path.name} {row.place} {' '.join(row.reason.split())}\n"
                for row in (*loaded.broken, *loaded.unwanted)
            ]
            for i, row in enumerate(loaded.examples):
                turns = [data.plain(message) for message in row["messages"]]
                place = f"{path.name} {loaded.place(i)}"
                yield document(text=data.text_of(turns), id=place, metadata={**row, "messages": turns})
        if self.broken is not None:
            files.write_text(Path(self.broken) / f"{rank:05d}.txt", "".join(notes))


@dataclass(frozen=True)
class Words:
    """Stands in for datatrove's word tokenizers."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words; fewer than 5 are filled up with empty ones, which makes a short text one shingle."""
        found = data.words(text)
        return found + [""] * (data.SKETCH.words - len(found)) if 0 < len(found) < data.SKETCH.words else found


def datatrove_words() -> Words:
    """The `language` of datatrove's signatures: words as `near_duplicates` cuts them, for the same 5-grams."""
    _datatrove("utils.word_tokenizers").WordTokenizer.register(Words)  # datatrove takes only its own kind
    return Words()


def datatrove_config() -> Any:
    """The `MinhashConfig` of our 5-grams, bands and rows; SHA-1 because datatrove's xxhash fails with xxhash 4."""
    norms = _datatrove("utils.text").TextNormConfig
    return _datatrove("pipeline.dedup.minhash").MinhashConfig(
        n_grams=data.SKETCH.words,
        num_buckets=data.SKETCH.bands,
        hashes_per_bucket=data.SKETCH.rows,
        norm_config=norms(**dict.fromkeys(inspect.signature(norms).parameters, False)),  # our words are normalised
        hash_config=_datatrove("utils.hashing").HashConfig(precision=64, hash_fc="sha1"),
    )


def _datatrove(module: str) -> Any:
    try:
        return import_module(f"datatrove.{module}")
    except ImportError as error:
        raise MissingExtra(
            f"Cleaning beyond one machine needs datatrove ({error}). Run: pip install 'ftkit[scale]'"
        ) from error
