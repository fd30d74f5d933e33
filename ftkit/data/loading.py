"""Rows out of any source into one `messages` column, with an account of every row that cannot be read.

Knows files, Hub datasets, lists and the bundled samples; what becomes of the examples is others' business.
"""

import itertools
import json
import re
import tempfile
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.data import readers
from ftkit.data.formats import chat_like, check_mapping, detect_format, to_messages, used_columns
from ftkit.data.turns import as_text, blank, listed, plain, tools_text
from ftkit.errors import DataError, FtkitWarning
from ftkit.tables import visible

_SAMPLES = (
    "invoices",
    "invoices_unseen",
    "messy",
    "messy_test",
    "general",
    "json_skill",
    "tool_skill",
    "harmless",
    "harmful",
    "passages",
    "handbook",
)
_PEEKED = 1_000  # rows by whose columns the format is told
_IN_MEMORY = 32 * 2**20  # bytes of rows that wait in memory; more of them wait in a file
_BATCH = 2_000
_INT64 = 2**63
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, default=lambda value: str(value) if value is listed(value) else listed(value)
)
_RENDERED = re.compile(
    r"\[INST\]|### ?(?:Human|Instruction|Assistant|Response)|<\|(?:user|assistant|start_header_id)\|>|<start_of_turn>"
    r"|^(?:Human|Assistant|User): ",
    re.MULTILINE,
)
_SHOWN = 10
_VERDICTS = ({"0", "1"}, {"0.0", "1.0"}, {"good", "bad"}, {"chosen", "rejected"}, {"desirable", "undesirable"})


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read: its position from 0, where a person finds it, and why."""

    row: int
    place: str
    reason: str

    def __str__(self) -> str:
        return visible(f"{self.place}: {self.reason}")


@dataclass(frozen=True)
class Loaded:
    """What a source held: the rows that are well-formed, and those that are not."""

    name: str
    examples: Any
    broken: tuple[Broken, ...]
    positions: "array[int]"  # of each row of `examples` in the source, from 0
    numbers: "array[int]"  # line or row number of each, as the file's reader counts
    of_files: "array[int]"  # which of `named` each is from
    named: tuple[tuple[str, str], ...]  # ("line", "") or, of a folder's files, ("line", " of part-1.jsonl")
    unwanted: tuple[Broken, ...] = ()  # rows whose answers the source marks as not to be learned

    @property
    def total(self) -> int:
        """Rows of the source, well-formed or not."""
        return len(self.positions) + len(self.broken) + len(self.unwanted)

    def position(self, i: int) -> int:
        """Position in the source, from 0, of row `i` of `examples`."""
        return self.positions[i]

    def place(self, i: int) -> str:
        """Where a person finds row `i` of `examples`, such as "line 7"."""
        unit, of_file = self.named[self.of_files[i]]
        return f"{unit} {self.numbers[i]}{of_file}"

    def refuse_broken(self, way_out: str = "on_error='skip'") -> None:
        """Stop here if a row could not be read; `way_out` is how the caller may leave such rows out.

        Raises:
            DataError: numbers the rows, each with its reason.
        """
        if self.broken:
            way = f"Fix them, or leave them out with {way_out}." if self.positions else "No row can be used."
            raise DataError(f"{self.name}: {self._rows(' cannot be used')}\n{way}")

    def warn_broken(self) -> None:
        """Say which rows are left out; stop if none is left."""
        if self.broken and not self.positions:
            self.refuse_broken()
        if self.broken:
            warnings.warn(f"{self.name}: left out {self._rows()}", FtkitWarning, stacklevel=3)

    def _rows(self, what: str = "") -> str:
        shown = "\n  ".join(map(str, self.broken[:_SHOWN]))
        more = f"\n  … and {len(self.broken) - _SHOWN} more" if len(self.broken) > _SHOWN else ""
        return f"{len(self.broken)} of {self.total} rows{what}:\n  {shown}{more}"


def load_examples(
    source: Any,
    *,
    split: str | None = None,
    mapping: Mapping[str, str] | None = None,
    merge_turns: bool = False,
    on_error: str = "raise",
) -> Any:
    """Read any supported table into a `datasets.Dataset` with a `messages` column; other columns come along.

    Args:
        source: a JSON, JSONL, CSV, TSV, Parquet or Arrow file, perhaps packed (.gz, .bz2, .zst, .zip), a folder of such
            files or of `save_to_disk`, a Hub dataset id, a list of dicts, a Dataset, or a bundled name: "invoices" and
            "invoices_unseen" (extract products and prices; the second has layouts that training never saw), "messy"
            and "messy_test" (a help desk's mail with planted defects), "general" (short questions), "passages" (general
            text), and suites for a gate: "json_skill", "tool_skill", "harmless", "harmful".
        split: keep only rows whose `split` column says so, by any usual name ("validation" finds "val"); for a Hub
            dataset the split to download ("train").
        mapping: which columns hold what, for formats that `detect_format` does not know:
            `{"prompt": "question", "answer": "reply"}`, optionally `"system"`, `"context"` and `"reasoning"`;
            `{"messages": column}` for turns, `{"text": column}` for documents.
        merge_turns: join neighbouring turns of one role instead of refusing them.
        on_error: "raise" lists all bad rows and stops; "skip" leaves them out and warns with their numbers.

    Raises:
        DataError: what is wrong, where, and what to do.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error={on_error!r} is not 'raise' or 'skip'.")
    name, rows, split = _open(source, split)
    loaded = _collect(name, rows, mapping, merge_turns)
    if on_error == "raise":
        loaded.refuse_broken()
    else:
        loaded.warn_broken()
    examples = loaded.examples
    _note_origin(examples, source)
    if split is None:
        return examples
    names = examples["split"][:] if "split" in examples.column_names else []
    there = set(names)
    if not (chosen := _same_split(split, there)):
        raise DataError(f"{name} has no split {split!r}; there are: {', '.join(sorted(map(str, there))) or 'none'}.")
    return examples.select([i for i, value in enumerate(names) if value in chosen])


def _same_split(split: str, there: Iterable[Any]) -> set[Any]:
    """The names that mean this split: itself, or else all other names of the same part ("val" for "validation")."""
    names, part = set(there), readers.part(split)
    return names & {split} or {name for name in names if part and readers.part(name) == part}


def read_rows(source: Any, *, mapping: Mapping[str, str] | None = None, merge_turns: bool = False) -> Loaded:
    """Read any source of `load_examples` and account for every row: nothing is raised for a row that is malformed.

    Raises:
        DataError: a source that cannot be read at all, or whose format is unknown.
    """
    name, rows, _ = _open(source, None)
    loaded = _collect(name, rows, mapping, merge_turns)
    _note_origin(loaded.examples, source)
    return loaded


def _open(source: Any, split: str | None) -> tuple[str, readers.Rows, str | None]:
    """Name, numbered rows, and the split that is still to be picked out."""
    if not isinstance(source, str | Path):
        return "the given rows", _given(source), split
    text = str(source)
    if text in _SAMPLES:
        if (text, split) == ("invoices", "unseen"):
            text, split = "invoices_unseen", None
        file = resources.files("ftkit").joinpath("samples", f"{text}.jsonl")
        return text, readers.read(Path(str(file))), split
    name = readers.said(text)
    with readers.explained(name):
        if _is_hub_id(text):
            return text, _hub_rows(text, split or "train"), None
        path = Path(text).expanduser()
        known = path.suffix.lower() in readers.ENDINGS or path.exists()
    if not known and "/" not in text:
        raise DataError(
            f"{name!r} is no file and no bundled dataset. Bundled: {', '.join(_SAMPLES)}. A Hub id is 'owner/name'."
        )
    return name, readers.read(path), split


def _is_hub_id(text: str) -> bool:
    path = Path(text).expanduser()
    known = path.suffix.lower() in readers.ENDINGS or path.exists()
    return not known and text.count("/") == 1 and not path.parent.is_dir()


def _note_origin(examples: Any, source: Any) -> None:
    """Note where the rows come from and under which licence, in the two fields of `datasets` that go along with them.

    They stay when rows are chosen, and are joined when datasets are.
    """
    examples.info.homepage, examples.info.license = _origin(source)


def _origin(source: Any) -> tuple[str, str]:
    """The source's page, "" where there is none, and its licence, "unknown" where it names none.

    An empty licence would vanish beside another one when datasets are joined.
    """
    if not isinstance(source, str | Path):
        info = getattr(source, "info", None)
        return getattr(info, "homepage", None) or "", getattr(info, "license", None) or "unknown"
    text = str(source)
    if text in _SAMPLES:
        return f"{text} (bundled with ftkit)", "apache-2.0"
    if not _is_hub_id(text):
        return "", "unknown"
    import httpx
    from huggingface_hub import HfApi

    page = f"https://huggingface.co/datasets/{text}"
    try:
        card = HfApi().dataset_info(text, timeout=10).card_data
    except (httpx.HTTPError, OSError, ValueError):
        return page, "unknown"
    named = card.get("license") if card else None
    return page, "\n\n".join(map(str, named if isinstance(named, list) else [named or "unknown"]))


def _given(source: Any) -> readers.Rows:
    """Rows of a list, of a Dataset without what Arrow fills in, or of an object in one of the shapes of JSON files."""
    if hasattr(source, "columns"):
        ways = {"to_pylist": "table.to_pylist()", "to_dicts": "frame.to_dicts()"}
        way = next((way for name, way in ways.items() if hasattr(source, name)), "frame.to_dict('records')")
        raise DataError(f"{type(source).__name__} is no list of rows. Give {way}.")
    if not isinstance(source, Iterable) or isinstance(source, bytes):
        raise DataError(f"{type(source).__name__} is no dataset: give a path, a Hub id, a list of dicts or a Dataset.")
    ours = type(source).__module__.startswith("datasets.")
    if isinstance(source, Mapping) and not ours:
        source = readers.shaped("the given object", dict(source))
    if isinstance(source, Mapping):
        parts = (_dataset_rows("the given rows", rows, part) for part, rows in source.items())
        return itertools.chain.from_iterable(parts)
    if ours:
        return _dataset_rows("the given rows", source)
    return ((f"row {n}", {"messages": row} if isinstance(row, list) else row) for n, row in enumerate(source, 1))


def _dataset_rows(name: str, dataset: Any, part: str | None = None) -> readers.Rows:
    """Rows of a Dataset, which may be a part of a DatasetDict."""
    if hasattr(dataset, "cache_files") and dataset.format["type"] != "custom":  # a transform makes other rows
        rows = readers.arrow_rows(name, dataset.with_format("arrow").iter(_BATCH))
    else:
        rows = readers.guarded(name, ((f"row {n}", readers.unpadded(row)) for n, row in enumerate(dataset, 1)))
    if part is None:
        return rows
    return ((f"{place} of {part}", {"split": part} | row if isinstance(row, dict) else row) for place, row in rows)


def _hub_rows(name: str, split: str) -> readers.Rows:
    from datasets import get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        try:
            rows = load_dataset(name, split=split)
        except ValueError as error:
            there = _same_split(split, get_dataset_split_names(name)) if "Unknown split" in str(error) else ()
            if not there:
                raise
            rows = load_dataset(name, split=min(there))
    except (DatasetsError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        # `datasets` raises FileNotFoundError and ConnectionError alike here: the text is what tells them apart
        raise DataError(
            f"{name!r} could not be read from the Hub: {(str(error) or type(error).__name__).splitlines()[0][:200]} "
            "Is the name right, the network there, and for gated data `hf auth login` done?"
        ) from error
    return _dataset_rows(name, rows)


def _collect(name: str, rows: readers.Rows, mapping: Mapping[str, str] | None, merge_turns: bool) -> Loaded:
    if mapping is not None:
        check_mapping(mapping)
    first = list(itertools.islice(rows, _PEEKED))
    format = None if mapping else _format(name, first)
    if format != "text" and "text" not in (mapping or ()) and "label" not in (mapping or {}).values():
        _refuse_verdicts(name, first)
    waiting = _Waiting()
    broken: list[Broken] = []
    unwanted: list[Broken] = []
    left: set[str] = set()
    positions, numbers, of_files = array("q"), array("q"), array("l")
    named: dict[tuple[str, str], int] = {}
    with files.disk_errors_explained(Path(tempfile.gettempdir())):
        for position, (place, row) in enumerate(itertools.chain(first, rows)):
            unit, number, *of_file = place.split(maxsplit=2)
            try:
                row = _converted(row, format, mapping, merge_turns, left)
                answers = [turn for turn in row["messages"] if turn["role"] == "assistant"]
                if answers and all(turn.get("train") is False for turn in answers):
                    unwanted.append(Broken(position, place, "its marks say that no answer of it is to be learned"))
                    continue
                waiting.add(row)
            except RecursionError:
                broken.append(Broken(position, place, "is nested too many levels deep. Write the inner part as text."))
            except DataError as error:
                broken.append(Broken(position, place, str(error)))
            else:
                positions.append(position)
                numbers.append(int(number))
                of_files.append(named.setdefault((unit, "".join(f" {part}" for part in of_file)), len(named)))
    if not (positions or broken):
        said = " whose answers are to be learned (its marks, such as label: false, say so)" if unwanted else ""
        raise DataError(f"{name} holds no rows{said}.")
    loaded = Loaded(name, waiting.dataset(), tuple(broken), positions, numbers, of_files, tuple(named), tuple(unwanted))
    _say_what_is_left(loaded, left, format)
    return loaded


def _say_what_is_left(loaded: Loaded, left: set[str], format: str | None) -> None:
    """One warning a file for rows that its marks leave out, for what nobody reads, and for texts that are chats."""
    said = []
    if loaded.unwanted:
        places = ", ".join(row.place for row in loaded.unwanted[:_SHOWN])
        more = ", …" if len(loaded.unwanted) > _SHOWN else ""
        said.append(
            f"{len(loaded.unwanted)} of {loaded.total} rows are left out: their marks (label, kto_tag, train, weight, "
            f"loss) say that no answer of theirs is to be learned ({places}{more})."
        )
    if left:
        said.append(f"Not read, though it looks like a part of the chats: {', '.join(sorted(left))}.")
    if format == "text" and any(map(_RENDERED.search, loaded.examples[:100].get("text", ()))):
        said.append(
            "The texts look like chats that were rendered already: as raw text all of it is trained, the questions "
            "too. Write turns as messages to train the answers alone."
        )
    if said:
        warnings.warn(f"{loaded.name}: {' '.join(said)}", FtkitWarning, stacklevel=4)


def _format(name: str, first: list[tuple[str, Any]]) -> str | None:
    """The format of the first rows; None where all are broken: that is what the caller shall hear."""
    tables = [row for _, row in first if isinstance(row, Mapping)]
    if not tables:
        return None
    columns = set().union(*tables[:100])
    try:
        return detect_format(map(str, columns), tables[:100])
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _refuse_verdicts(name: str, first: list[tuple[str, Any]]) -> None:
    """A column `label` of two words or numbers may be a class, or mark answers that someone refused: ask which."""
    labels = {str(row["label"]).strip() for _, row in first if isinstance(row, Mapping) and not blank(row.get("label"))}
    if labels and any(map(labels.issubset, _VERDICTS)):
        raise DataError(
            f"{name}: the column label holds {' and '.join(sorted(labels))}. If it marks answers that someone refused, "
            "call it kto_tag, with 0 or false, and such rows are left out; if it is a class, call it class."
        )


def _converted(
    row: Any, format: str | None, mapping: Mapping[str, str] | None, merge_turns: bool, left: set[str]
) -> dict[str, Any]:
    """The row's own columns and its `messages`; a DataError says why there are none."""
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, Mapping):
        raise DataError(f"is {type(row).__name__} ({str(row)[:40]!r}), wanted an object with columns")
    used = used_columns(format or "messages", mapping)
    own = {str(k): v for k, v in row.items() if k not in used}
    messages = to_messages(row, format, mapping, merge_turns=merge_turns, left=left)
    for name, value in own.items():
        if isinstance(value, str):
            as_text(value, f"a column {name}")
    schemas = [row[name] for name in ("tools", "functions") if not blank(row.get(name))]
    if schemas or "tools" in own:
        own["tools"] = tools_text(schemas[0] if schemas else None)
    if mapping and "text" in mapping:
        own["text"] = row[mapping["text"]]
    if mapping is None:  # an error that advised the mapping has named the rest
        left |= chat_like(row, used | {"tools"}, messages)
    return {**own, "messages": messages}


def combined(parts: Sequence[Any]) -> Any:
    """One Dataset of the rows of several: turns with the keys of all, a column of several types as text."""
    from datasets import concatenate_datasets

    if len({str(part.features) for part in parts}) == 1:
        return concatenate_datasets(parts)
    waiting = _Waiting()
    for row in itertools.chain.from_iterable(parts):
        waiting.add({**row, "messages": [plain(turn) for turn in row["messages"]]})
    return waiting.dataset()


@contextmanager
def no_datasets_bars() -> Iterator[None]:
    """Without the bars of datasets, which copies rows where nobody asked: in a mixture, in a training on a GPU."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


class _Waiting:
    """Rows that wait, in a file when they are many, until the types of all their columns are known."""

    def __init__(self) -> None:
        self._rows = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._kinds: dict[str, set[str]] = {}
        self._keys = dict.fromkeys(("role", "content"))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, or raise a DataError that says why it cannot be written."""
        try:
            line = _ENCODER.encode(row).encode()
        except (TypeError, ValueError) as error:
            raise DataError(f"has a column that JSON cannot hold ({error})") from error
        for name, value in row.items():
            if name != "messages":
                self._kinds.setdefault(name, set()).update(_kind(value))
        for turn in row["messages"]:
            self._keys |= dict.fromkeys(turn)
        self._rows.write(line + b"\n")

    def dataset(self) -> Any:
        """All rows, in a file that is memory-mapped and vanishes with the process.

        `Dataset.from_generator` would keep the types of the first rows, and give old rows for a file that has changed.
        """
        import pyarrow
        from datasets import Dataset, Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        types = {name: _type(kinds) for name, kinds in self._kinds.items()}
        own = {name: List(Value("string")) if kind == "words" else Value(kind) for name, kind in types.items()}
        turn = {key: Value("bool" if key == "train" else "string") for key in self._keys}
        features = Features({**own, "messages": List(turn)})
        mixed = {name: kind for name, kind in types.items() if self._kinds[name] - {kind}}
        path = Path(tempfile.mkdtemp(dir=_scratch().name)) / "rows.arrow"
        self._rows.seek(0)
        with files.disk_errors_explained(path), ArrowWriter(path=str(path), features=features) as writer:
            while lines := list(itertools.islice(self._rows, _BATCH)):
                rows = json.loads(b"[" + b",".join(lines) + b"]")
                for row in rows if mixed else ():
                    row.update({name: _fitted(row.get(name), kind) for name, kind in mixed.items()})
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema))
            writer.finalize()
        self._rows.close()
        return Dataset.from_file(str(path))


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="ftkit-data-")


def _kind(value: Any) -> set[str]:
    """The Arrow type of a value, or "text" for what is written as JSON; nothing for no value."""
    if value is None:
        return set()
    if isinstance(value, bool):
        return {"bool"}
    if isinstance(value, int):
        return {"int64" if -_INT64 <= value < _INT64 else "text"}
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return {"words"}
    return {{str: "string", float: "float64"}.get(type(value), "text")}


def _type(kinds: set[str]) -> str:
    """One type for a column: whole numbers beside others become floats, any other mixture text."""
    if kinds == {"int64", "float64"}:
        return "float64"
    if len(kinds) > 1 or kinds == {"text"}:
        return "string"
    return next(iter(kinds), "null")


def _fitted(value: Any, kind: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if kind == "string":
        return json.dumps(value, ensure_ascii=False)
    return float(value) if kind == "float64" else value
