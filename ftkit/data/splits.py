"""Examples past the loading: splits that keep twins together, prompts, digests.

`loading` reads any table to `messages`, `template` renders and masks, `formats` converts single rows; their public names
are repeated here.
"""

import hashlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.data import similarity
from ftkit.data.export import export
from ftkit.data.formats import Messages, plain
from ftkit.data.loading import load_examples
from ftkit.data.shingles import Texts
from ftkit.errors import DataError, FtkitWarning
from ftkit.runs import Run


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one dataset; `val` steers training, `test` is looked at once."""

    train: Any
    val: Any
    test: Any

    def __str__(self) -> str:
        return f"train {len(self.train)} · val {len(self.val)} · test {len(self.test)} rows"

    def _repr_html_(self) -> str:
        return f"<b>{self}</b>"


def split(
    examples: Any, *, val: float = 0.1, test: float = 0.1, seed: int = 42, near: float | None = similarity.THRESHOLD
) -> Splits:
    """Cut examples into train, val and test; rows with the same prompt, and near-duplicates, stay together: no answer leaks.

    Examples that bring a `split` column with train, val and test (the bundled sets do) keep that cut.

    Args:
        examples: with `messages`.
        val: share of the rows.
        test: share of the rows.
        seed: of the cut.
        near: rows whose prompts, or whose whole texts, are at least this alike (Jaccard of word 5-grams) go to the same
            part; None looks at equal prompts only.

    Raises:
        DataError: too few rows, or shares that leave nothing to train on.
    """
    if {"train", "val", "test"} <= (set(examples["split"]) if "split" in examples.column_names else set()):
        named = {n: [i for i, s in enumerate(examples["split"]) if s == n] for n in ("train", "val", "test")}
        if left := len(examples) - sum(map(len, named.values())):
            warnings.warn(
                f"{left} rows have another name in their split column and are left out.", FtkitWarning, stacklevel=2
            )
        return Splits(*(examples.select(named[n]) for n in ("train", "val", "test")))
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise DataError(f"val={val}, test={test}: each wants a share between 0 and 1, together below 1.")
    groups = _twins(examples, near)
    if len(groups) < 3:
        raise DataError(
            f"{len(examples)} rows with {len(groups)} different prompts cannot be cut into three parts; at least 3 are wanted."
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    parts = _filled(order, {key: len(rows) for key, rows in groups.items()}, val, test)
    return Splits(*(examples.select(sorted(i for key in part for i in groups[key])) for part in parts))


def _filled(order: list[str], sizes: Mapping[str, int], val: float, test: float) -> tuple[list[str], ...]:
    """Groups for train, val and test, by rows; a group that is larger than what a part still wants goes to train."""
    rows = sum(sizes.values())
    wanted = {"test": max(1, round(test * rows)), "val": max(1, round(val * rows))}
    wanted["val"] = max(1, min(wanted["val"], rows - wanted["test"] - 1))
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for key in order:
        part = next((name for name in wanted if sizes[key] <= wanted[name]), "train")
        parts[part].append(key)
        if part != "train":
            wanted[part] -= sizes[key]
    for name in ("test", "val"):
        if not parts[name]:  # every group is too large: the smallest must do
            parts[name].append(min(parts["train"], key=lambda key: sizes[key]))
            parts["train"].remove(parts[name][0])
    return parts["train"], parts["val"], parts["test"]


def _twins(examples: Any, near: float | None) -> dict[str, list[int]]:
    """Rows that must not be parted, under a digest of the first one's prompt."""
    keys = [_key(prompt(messages)) for messages in examples["messages"]]
    first: dict[str, int] = {}
    same = [first.setdefault(key, i) for i, key in enumerate(keys)]
    labels = same
    if near is not None:
        links = [p for on in ("prompt", "all") for p in similarity.near_pairs(Texts(examples, on), near).pairs]
        labels = similarity.join(len(keys), [*enumerate(same), *((p.first, p.second) for p in links)])
        largest = Counter(labels).most_common(1)[0][1] if labels else 0
        if largest > 0.5 * len(keys) and len(set(labels)) < 0.5 * len(first):
            warnings.warn(
                f"{largest} of {len(keys)} rows are linked as at least {near:.0%} alike (a long instruction that all share?), so "
                "only rows with equal prompts are kept together.",
                FtkitWarning,
                stacklevel=3,
            )
            labels = same
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(keys[label], []).append(i)
    return groups


def _key(messages: Messages) -> str:
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def save(splits: Splits, run: Run) -> Path:
    """Write `data/train.jsonl`, `val.jsonl` and `test.jsonl` into the run folder, with all their columns.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    for name in ("train", "val", "test"):
        export(getattr(splits, name), run / f"data/{name}.jsonl", "messages")
    return run / "data"


def load_splits(run: Run) -> Splits:
    """The splits that `save` or a training wrote.

    Raises:
        MissingArtifact: the run holds no data; says which step writes it.
    """
    return Splits(*(load_examples(run.require(f"data/{name}.jsonl")) for name in ("train", "val", "test")))


def prompt(messages: Sequence[Mapping[str, str]]) -> Messages:
    """The turns before the last answer: what a model is asked."""
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return [plain(m) for m in messages[:last]]


def digest(*parts: Any) -> str:
    """Twelve hex digits that change when any message of these datasets, or their order, changes."""
    running = hashlib.sha256()
    for part in parts:
        for messages in part["messages"]:
            running.update(json.dumps([plain(m) for m in messages], sort_keys=True, ensure_ascii=False).encode())
        running.update(b"\x00")
    return running.hexdigest()[:12]
