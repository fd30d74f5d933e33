"""Rows out of any source into one `messages` column, with an account of every row that cannot be read.

Knows files, Hub datasets, lists and the bundled samples; what becomes of the rows is `data`'s business.
"""

import atexit
import itertools
import json
import tempfile
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.data import readers
from ftkit.data.formats import as_text, check_mapping, detect_format, to_messages, tools_text, used_columns
from ftkit.errors import DataError, FtkitWarning

_SAMPLES = {
    "invoices": (
        "invoices.jsonl",
        "extract products and prices from an invoice; train, val and test share layouts and vendors",
    ),
    "invoices_unseen": (
        "invoices_unseen.jsonl",
        "the same task with layouts, vendors and products that training never saw",
    ),
    "messy": ("messy.jsonl", "a help desk's mail with planted defects, to learn cleaning on; notebook 07 lists them"),
    "messy_test": ("messy_test.jsonl", "test rows that came with it, some of which leak"),
    "general": ("general.jsonl", "short general questions with checkable answers, to see what a model forgot"),
}

_BATCH = 10_000

_SHOWN = 10


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read: its position from 0, where a person finds it, and why."""

    row: int
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """What a source held: the rows that are well-formed, and those that are not."""

    name: str
    examples: Any
    broken: tuple[Broken, ...]
    positions: "array[int]"  # of each row of `examples` in the source, from 0
    numbers: "array[int]"  # line or row number of each, as the file's reader counts
    unit: str  # "line" or "row"

    @property
    def total(self) -> int:
        """Rows of the source, well-formed or not."""
        return len(self.positions) + len(self.broken)

    def position(self, i: int) -> int:
        """Position in the source, from 0, of row `i` of `examples`."""
        return self.positions[i]

    def place(self, i: int) -> str:
        """Where a person finds row `i` of `examples`, such as "line 7"."""
        return f"{self.unit} {self.numbers[i]}"

    def refuse_broken(self, way_out: str = "on_error='skip'") -> None:
        """Stop here if a row could not be read; `way_out` is how the caller may leave such rows out.

        Raises:
            DataError: numbers the rows, each with its reason.
        """
        if self.broken:
            way = f"Mend them, or leave them out with {way_out}." if self.positions else "No row can be used."
            raise DataError(
                f"{self.name}: {len(self.broken)} of {self.total} rows cannot be used:\n  {self._listed()}\n{way}"
            )

    def warn_broken(self) -> None:
        """Say which rows are left out; stop if none is left."""
        if self.broken and not self.positions:
            self.refuse_broken()
        if self.broken:
            message = f"{self.name}: left out {len(self.broken)} of {self.total} rows:\n  {self._listed()}"
            warnings.warn(message, FtkitWarning, stacklevel=3)

    def _listed(self) -> str:
        more = f"\n  … and {len(self.broken) - _SHOWN} more" if len(self.broken) > _SHOWN else ""
        return "\n  ".join(map(str, self.broken[:_SHOWN])) + more


def samples() -> dict[str, str]:
    """Names of the bundled datasets, each with one sentence; `load_examples(name)` reads it."""
    return {name: about for name, (_, about) in _SAMPLES.items()}


def load_examples(
    source: Any,
    *,
    split: str | None = None,
    mapping: Mapping[str, str] | None = None,
    on_error: str = "raise",
) -> Any:
    """Read any supported table into a `datasets.Dataset` with a `messages` column; other columns come along.

    Args:
        source: a JSON, JSONL, CSV, TSV or Parquet file, a Hub dataset id, a bundled name (`samples()`), a list of dicts
            or a Dataset.
        split: keep only rows whose `split` column says so; for a Hub dataset the split to download ("train").
        mapping: which columns hold what, for formats that `detect_format` does not know:
            `{"prompt": "question", "answer": "reply"}`, optionally `"system"`.
        on_error: "raise" lists all bad rows and stops; "skip" leaves them out and warns with their numbers.

    Raises:
        DataError: what is wrong, where, and what to do.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error={on_error!r} is not 'raise' or 'skip'.")
    name, rows, split = _open(source, split)
    loaded = _collect(name, rows, mapping)
    if on_error == "raise":
        loaded.refuse_broken()
    else:
        loaded.warn_broken()
    dataset = loaded.examples
    if split is None:
        return dataset
    there = set(dataset["split"]) if "split" in dataset.column_names else set()
    if split not in there:
        raise DataError(f"{name} has no split {split!r}; there are: {', '.join(sorted(map(str, there))) or 'none'}.")
    return dataset.select([i for i, value in enumerate(dataset["split"]) if value == split])


def read_rows(source: Any, *, mapping: Mapping[str, str] | None = None) -> Loaded:
    """Read any source of `load_examples` and account for every row: nothing is raised for a row that is malformed.

    Raises:
        DataError: a source that cannot be read at all, or whose format is unknown.
    """
    name, rows, _ = _open(source, None)
    return _collect(name, rows, mapping)


def _open(source: Any, split: str | None) -> tuple[str, readers.Rows, str | None]:
    """Name, numbered rows, and the split that is still to be picked out."""
    if not isinstance(source, str | Path):
        if isinstance(source, Mapping) or hasattr(source, "columns"):
            named = ", ".join(map(str, source)) if isinstance(source, Mapping) else "DataFrame"
            raise DataError(
                f"{type(source).__name__} ({named[:80]}) is no list of rows. Pick a part, such as source['train'], or give "
                "frame.to_dict('records')."
            )
        if not isinstance(source, Iterable):
            raise DataError(
                f"{type(source).__name__} is no dataset: give a path, a Hub id, a list of dicts or a Dataset."
            )
        return "the given rows", ((f"row {n}", row) for n, row in enumerate(source, 1)), split
    text = str(source)
    if text in _SAMPLES:
        if (text, split) == ("invoices", "unseen"):
            text, split = "invoices_unseen", None
        file = resources.files("ftkit").joinpath("samples", _SAMPLES[text][0])
        return text, readers.read(Path(str(file))), split
    path = Path(text).expanduser()
    hub_like = text.count("/") == 1 and path.suffix.lower() not in readers.ENDINGS and not path.parent.is_dir()
    if hub_like and not path.exists():
        return text, _hub_rows(text, split or "train"), None
    if "/" not in text and path.suffix.lower() not in readers.ENDINGS and not path.exists():
        raise DataError(
            f"{text!r} is no file and no bundled dataset. Bundled: {', '.join(_SAMPLES)}. A Hub id is 'owner/name'."
        )
    return text, readers.read(path), split


def _hub_rows(name: str, split: str) -> readers.Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        rows = load_dataset(name, split=split)
    except (DatasetsError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        # `datasets` raises FileNotFoundError and ConnectionError alike here: the text is what tells them apart
        raise DataError(
            f"{name!r} could not be read from the Hub: {(str(error) or type(error).__name__).splitlines()[0][:200]} "
            "Is the name right, the network there, and for gated data `hf auth login` done?"
        ) from error
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _collect(name: str, rows: readers.Rows, mapping: Mapping[str, str] | None) -> Loaded:
    """Convert in batches; beyond the first they go to a file that is memory-mapped, so a large source never stands in memory."""
    from datasets import Dataset, concatenate_datasets

    if mapping is not None:
        check_mapping(mapping)
    parts: list[Any] = []
    broken: list[Broken] = []
    positions, numbers, unit = array("q"), array("q"), "row"
    format: str | None = None
    spill = Spill()
    for start, batch in _batches(rows):
        format = format or (None if mapping else _format(name, batch))
        good = []
        for position, (place, row) in enumerate(batch, start):
            unit, number = place.split()
            converted, problem = _convert(row, format, mapping)
            if problem:
                broken.append(Broken(position, place, problem))
            else:
                good.append(converted)
                positions.append(position)
                numbers.append(int(number))
        if good:
            parts.append(spill.dataset(uniform(good)))
    if not (positions or broken):
        raise DataError(f"{name} holds no rows.")
    parts = aligned(parts)  # columns may have changed their type from one batch to the next
    parts = parts or [Dataset.from_dict({"messages": []})]
    examples = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return Loaded(name, examples, tuple(broken), positions, numbers, unit)


def _batches(rows: readers.Rows) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """Batches of rows, each with the position of its first."""
    for start in itertools.count(0, _BATCH):
        batch = list(itertools.islice(rows, _BATCH))
        if not batch:
            return
        yield start, batch


def _format(name: str, batch: list[tuple[str, Any]]) -> str | None:
    tables = [row for _, row in batch if isinstance(row, Mapping)]
    if not tables:
        return None  # every row is broken: that is what the caller shall hear
    columns = {column for row in tables[:100] for column in row}
    try:
        # a column "text" beside others, with no chat in it, is something else: a text with its label, say
        chats = len(columns) == 1 or any("<|im_start|>" in str(row.get("text")) for row in tables[:100])
        return detect_format(columns, chatml=chats)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _convert(row: Any, format: str | None, mapping: Mapping[str, str] | None) -> tuple[dict[str, Any], str | None]:
    if isinstance(row, DataError):
        return {}, str(row)
    if not isinstance(row, Mapping):
        return {}, f"is {type(row).__name__} ({str(row)[:40]!r}), wanted an object with columns"
    used = set(mapping.values()) if mapping else used_columns(format or "messages")
    own = {str(k): v for k, v in row.items() if k not in used}
    try:
        messages = to_messages(row, format, mapping)
        for name, value in own.items():
            if isinstance(value, str):
                as_text(value, f"a column {name}")
        if "tools" in own:
            own["tools"] = tools_text(own["tools"])
    except DataError as error:
        return {}, str(error)
    return {**own, "messages": messages}, None


_INT64 = 2**63


class Spill:
    """The first batch stays in memory; later ones become Arrow files in a folder that vanishes with the process."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def dataset(self, rows: list[dict[str, Any]]) -> Any:
        """The rows as a Dataset."""
        from datasets import Dataset
        from datasets.arrow_writer import ArrowWriter

        self._count += 1
        if self._count == 1:
            return Dataset.from_list(rows)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ftkit-data-")
            atexit.register(self._folder.cleanup)
        path, table = str(Path(self._folder.name) / f"{self._count:06d}.arrow"), Dataset.from_list(rows)
        with files.disk_errors_explained(Path(path)), ArrowWriter(path=path, features=table.features) as writer:
            writer.write_table(table.data.table)
            writer.finalize()
        return Dataset.from_file(path)


def aligned(parts: list[Any]) -> list[Any]:
    """Give all parts the same columns and types: turns get every key, a column of several types becomes text."""
    from datasets import Features, List, Value

    if len({str(part.features) for part in parts}) == 1:
        return parts

    keys = dict.fromkeys(key for part in parts for key in part.features["messages"].feature)
    types: dict[str, list[Any]] = {}
    for part in parts:
        for name, feature in part.features.items():
            known = types.setdefault(name, [])
            known += [] if feature == Value("null") else [feature]  # a column that is empty so far has no type yet
    same = {
        name: kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else Value("string")
        for name, kinds in types.items()
    }
    wanted = Features({**same, "messages": List({key: Value("string") for key in keys})})

    def fit(row: dict[str, Any]) -> dict[str, Any]:
        """One row with the wanted columns and types."""
        fitted = {
            name: _as_text(row.get(name)) if wanted[name] == Value("string") else row.get(name) for name in wanted
        }
        return fitted | {"messages": [{key: turn.get(key) for key in keys} for turn in row["messages"]]}

    return [
        part.map(fit, features=wanted, remove_columns=part.column_names, load_from_cache_file=False) for part in parts
    ]


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def uniform(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make extra columns fit one Arrow type: whole numbers beside others become floats, any other mixture JSON text."""
    for column in {name for row in rows for name in row if name != "messages"}:
        values = [row[column] for row in rows if row.get(column) is not None]
        convert = _conversion(values)
        for row in rows:
            value = row.get(column)
            row[column] = None if value is None else convert(value)
    return rows


def _conversion(values: list[Any]) -> Callable[[Any], Any]:
    kinds = {type(value) for value in values}
    if kinds in ({str}, {bool}, {float}, set()) or all(_is_words(value) for value in values):
        return _as_it_is
    if kinds <= {int, float} and all(-_INT64 <= value < _INT64 for value in values):
        return _as_it_is if kinds == {int} else float
    return _as_text


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _as_it_is(value: Any) -> Any:
    return value
