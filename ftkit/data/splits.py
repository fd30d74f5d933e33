"""Train, validation and test parts that share no twins, kept in a run's folder; a digest tells datasets apart.

Knows examples and their prompts; how alike two texts are is `similarity`'s business.
"""

import datetime
import gc
import hashlib
import itertools
import json
import os
import random
import warnings
from array import array
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ftkit import files, tables
from ftkit.data import readers, similarity
from ftkit.data.formats import from_messages
from ftkit.data.loading import load_examples
from ftkit.data.shingles import Texts, chats
from ftkit.data.turns import Messages, plain
from ftkit.errors import DataError, FtkitWarning
from ftkit.runs import Run

NAMES = ("train", "val", "test")
_LIKE_SPLIT = ("split", "subset", "partition", "set", "part", "fold", "data_split", "dataset_split")
FILES = tuple(f"{name}.jsonl" for name in NAMES)
_SORTED = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


@tables.shown
@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one dataset; `val` steers training, `test` is looked at once."""

    train: Any
    val: Any
    test: Any
    searched: float | None = None  # similarity from which on near-duplicates stay in one part; None: nobody looked
    repeats: tuple[tuple[int, ...], ...] = ()  # groups of rows of `train`, from 1, whose texts are at least so alike

    def shorter_than(self, characters: int, *, most: int | None = None) -> "Splits":
        """The rows whose turns together hold fewer characters, of `train` at most so many; twins stay in one part."""
        kept = {}
        for name in NAMES:
            texts = (chat or [{"content": text}] for chat, text in chats(getattr(self, name)))
            sizes = (sum(len(turn["content"] or "") for turn in turns) for turns in texts)
            kept[name] = [row for row, size in enumerate(sizes) if size < characters]
        kept["train"] = kept["train"][:most]
        train, val, test = (getattr(self, name).select(rows) for name, rows in kept.items())
        place = {row + 1: number for number, row in enumerate(kept["train"], 1)}
        repeats: list[tuple[int, ...]] = []
        for group in self.repeats:
            left = [row for row in group if row in place]
            links = [left] if len(left) == len(group) else self._alike(left)
            repeats += [tuple(place[row] for row in rows) for rows in links]
        return Splits(train, val, test, self.searched, tuple(repeats))

    def _alike(self, rows: list[int]) -> list[list[int]]:
        """What is left of a group: a row that linked two others may be gone."""
        texts = Texts(self.train.select([row - 1 for row in rows]))
        found = similarity.near_pairs(texts, self.searched or similarity.THRESHOLD)
        return [[rows[i] for i in group] for group in found.groups()]

    def _parts(self) -> list[tables.Table | str]:
        return [f"train {len(self.train)} · val {len(self.val)} · test {len(self.test)} rows"]


def split(
    examples: Any,
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 42,
    near: float | None = similarity.THRESHOLD,
    stratify: str | None = None,
) -> Splits:
    """Cut examples into train, val and test; rows with the same prompt, and near-duplicates, stay together.

    Examples that bring a `split` column keep that cut (validation, valid, dev, eval and evaluation are names of val); a
    part that it lacks is cut from its train rows. Rows with other names are left out, with a warning. A column like
    `subset` or `partition` is such a cut where every row names a part.

    `val` and `test` are shares of the rows that are cut. Rows whose prompts, or whose whole texts, are at least `near`
    alike (Jaccard of word 5-grams) go to the same part; None looks at equal prompts only. The values of the column
    `stratify` have the same shares in every part, as far as twins allow.

    Raises:
        DataError: too few rows, no such column, or shares that leave nothing to train on.
    """
    if stratify is not None and stratify not in examples.column_names:
        raise DataError(f"stratify={stratify!r} is no column; there are: {', '.join(examples.column_names)}.")
    named = _own_cut(examples)
    shares = {name: share for name, share in (("test", test), ("val", val)) if not named.get(name)}
    parts = {name: examples.select(rows) for name, rows in named.items()}
    if not shares:
        if stratify is not None:
            warnings.warn(f"stratify={stratify!r} cuts nothing: the split column does.", FtkitWarning, stacklevel=2)
        return Splits(**parts)
    if not (all(0 < share < 1 for share in shares.values()) and sum(shares.values()) < 1):
        raise DataError(f"val={val}, test={test}: each wants a share between 0 and 1, together below 1.")
    whole = parts.get("train", examples)
    first: dict[str, int] = {}
    with _no_search_for_cycles():
        asked = (_SORTED(prompt(messages) or document) for messages, document in chats(whole))
        keys = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest() for text in asked]
        together, repeats = [first.setdefault(key, i) for i, key in enumerate(keys)], None  # with equal prompts
        if near is not None:
            together, repeats = _twins(whole, together, near)
    groups = {keys[group[0]]: group for group in similarity.grouped(together)}
    if len(groups) <= len(shares):
        raise DataError(
            f"{len(whole)} rows with {len(groups)} different prompts cannot be cut into "
            f"{'three' if len(shares) == 2 else 'two'} parts; at least {len(shares) + 1} are wanted."
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    kinds = [None] * len(whole) if stratify is None else list(map(_kind, whole[stratify][:]))
    sizes = {key: Counter(kinds[i] for i in rows) for key, rows in groups.items()}
    filled = _filled(order, sizes, shares)
    rows = {name: sorted(itertools.chain.from_iterable(groups[key] for key in part)) for name, part in filled.items()}
    parts |= {name: whole.select(array("q", part)) for name, part in rows.items()}
    if repeats is None or len(shares) < 2:  # twins across a cut that the rows bring were not looked for
        return Splits(**parts)
    place = {row: number for number, row in enumerate(rows["train"], 1)}
    in_train = tuple(tuple(place[i] for i in group) for group in repeats if group[0] in place)
    return Splits(**parts, searched=near, repeats=in_train)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Millions of small lists without a cycle: Python's search for one would take a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _own_cut(examples: Any) -> dict[str, list[int]]:
    """Rows of the parts that a column `split` names; empty where there is none, or none of its names is a part's."""
    column = _split_column(examples)
    if column is None:
        return {}
    named: dict[str, list[int]] = {}
    others: Counter[str] = Counter()
    for i, value in enumerate(examples[column]):
        if part := readers.part(value):
            named.setdefault(part, []).append(i)
        else:
            others[repr(value)] += 1
    if others:
        listed = ", ".join(f"{name} ({rows} rows)" for name, rows in others.most_common(5))
        what = "These rows are left out." if named else "So the column is no cut, and all rows are cut anew."
        message = f"The split column has names of no part: {listed}. {what} Parts are train, val and test."
        warnings.warn(message, FtkitWarning, stacklevel=3)
    if named and "train" not in named:
        raise DataError(
            f"The split column names {' and '.join(sorted(named))}, but no row to train on. "
            f"To cut these rows anew: split(examples.remove_columns({column!r}))."
        )
    return named


def _split_column(examples: Any) -> str | None:
    """`split`, or else a column of a like name in which every row names a part."""
    if "split" in examples.column_names:
        return "split"
    alike = [name for name in examples.column_names if name.lower() in _LIKE_SPLIT]
    return next((name for name in alike if all(map(readers.part, examples[name]))), None)


def _kind(value: Any) -> Any:
    """What stratifies a row: its value, or the JSON of a list."""
    return value if isinstance(value, Hashable) else json.dumps(value, sort_keys=True, default=str)


def _twins(examples: Any, same: list[int], near: float) -> tuple[list[int], list[list[int]] | None]:
    """For each row the first one that it must not be parted from, and groups of rows whose whole texts are alike.

    Prompts and whole texts are searched at once. No groups come back where nearly all rows hang together.
    """
    rows = len(same)
    texts = Texts(examples, "prompt", "all")
    found = similarity.near_pairs(texts, near, method=similarity.usual_method(rows), apart=rows)
    links = [(pair.first % rows, pair.second % rows) for pair in found.pairs]
    together = similarity.join(rows, [*enumerate(same), *links])
    largest = Counter(together).most_common(1)[0][1] if together else 0
    if largest > 0.5 * rows and len(set(together)) < 0.5 * len(set(same)):
        warnings.warn(
            f"{largest} of {rows} rows are linked as at least {near:.0%} alike (a long instruction that all share?), "
            "so only rows with equal prompts are kept together.",
            FtkitWarning,
            stacklevel=3,
        )
        return same, None
    whole = [(pair.first - rows, pair.second - rows) for pair in found.pairs if pair.first >= rows]
    return together, similarity.grouped(similarity.join(rows, whole), least=2)


def _filled(order: list[str], sizes: Mapping[str, Counter[Any]], shares: Mapping[str, float]) -> dict[str, list[str]]:
    """Groups for train and the parts with shares, by rows of each kind; a group that a part has no room for is trained.

    `sizes` holds how many rows of each kind a group has.
    """
    kinds: Counter[Any] = Counter()
    for group in sizes.values():
        kinds.update(group)
    room: dict[str, Counter[Any]] = {}
    left = kinds.total() - 1
    for place, (name, share) in enumerate(shares.items(), 1):
        wanted = max(1, min(round(share * kinds.total()), left - (len(shares) - place)))
        room[name] = _rooms(kinds, wanted)
        left -= wanted
    parts: dict[str, list[str]] = {"train": [], **{name: [] for name in shares}}
    for key in order:
        part = next((name for name in room if room[name] and room[name] >= sizes[key]), "train")
        parts[part].append(key)
        if part != "train":
            room[part] -= sizes[key]
    for name in shares:
        if not parts[name]:  # every group is too large: the smallest must do
            parts[name].append(min(parts["train"], key=lambda key: sizes[key].total()))
            parts["train"].remove(parts[name][0])
    return parts


def _rooms(kinds: Counter[Any], wanted: int) -> Counter[Any]:
    """`wanted` rows shared out among the kinds by how many there are (largest remainders)."""
    exact = {kind: wanted * rows / kinds.total() for kind, rows in kinds.items()}
    rooms = Counter({kind: int(rows) for kind, rows in exact.items()})
    rooms.update(sorted(exact, key=lambda kind: rooms[kind] - exact[kind])[: wanted - rooms.total()])
    return rooms


def save(splits: Splits, run: Run) -> Path:
    """Write `data/train.jsonl`, `val.jsonl` and `test.jsonl` into the run folder, with all their columns.

    Tool calls and schemas are written as objects. The three appear together or not at all; other files there stay.

    Raises:
        DataError: a part without rows, or rows that are no chats; numbers the first.
        StorageError: files of these names stand there that this function did not write, or that were edited since; the
            disk is full or the folder cannot be written.
    """
    files.refuse_foreign(run / "data", edited=True, names=FILES)
    with files.folder(run / "data", FILES) as working:
        for name in NAMES:
            part = getattr(splits, name)
            if len(part) == 0:
                raise DataError(f"{name} has no rows.")
            with (working / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(_lines(name, part))
                file.flush()
                os.fsync(file.fileno())
    return run / "data"


def _lines(name: str, part: Any) -> Iterator[str]:
    """Rows as JSON; `Dataset.to_json` adds Arrow's nulls, makes fractions of numbers beside nulls, counts of dates."""
    for number, row in enumerate(part, 1):
        try:
            turns = row["messages"]  # a document has none
            chat = from_messages(turns, "messages", tools=row.get("tools")) if turns else {}
            own = {column: value for column, value in row.items() if column not in ("messages", "tools")}
            text = json.dumps(chat | own, ensure_ascii=False, default=_date)
            text.encode()
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"{name} row {number} cannot be written: {error}.") from error
        yield text + "\n"


def _date(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    raise TypeError(f"JSON cannot hold {type(value).__name__}")


def load_splits(run: Run) -> Splits:
    """The splits that `save` or a training wrote.

    Raises:
        MissingArtifact: the run holds no data; says which step writes it.
    """
    return Splits(*(load_examples(run.require(f"data/{name}.jsonl")) for name in NAMES))


@overload
def prompt(example: Mapping[str, Any]) -> dict[str, Any]: ...
@overload
def prompt(example: Sequence[Mapping[str, Any]]) -> Messages: ...
def prompt(example: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any] | Messages:
    """What a model is asked: the turns before the last answer that may be trained.

    A row keeps its `tools`, a document its `text`; of messages come messages.
    """
    messages = example["messages"] if isinstance(example, Mapping) else example
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train") is not False]
    turns = [plain(m) for m in messages[: answers[-1] if answers else None]]
    if not isinstance(example, Mapping):
        return turns
    kept = ("tools",) if turns else ("tools", "text")
    return {"messages": turns} | {key: example[key] for key in kept if example.get(key)}


def digest(*parts: Any) -> str:
    """Twelve hex digits that change when any message or document of these datasets, or their order, changes."""
    running = hashlib.sha256()
    for part in parts:
        for messages, document in chats(part):
            running.update(_SORTED([plain(m) for m in messages] or document).encode())
        running.update(b"\x00")
    return running.hexdigest()[:12]
