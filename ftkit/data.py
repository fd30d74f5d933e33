"""Any table to `messages`: the one data format past this module.

Reads files, Hub datasets, lists and the bundled samples; splits them; reports every bad row by its number.
Rendering and masks live in `template`, single-row conversion in `formats`; their public names are repeated here.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit import readers
from ftkit.errors import DataError, FtkitWarning
from ftkit.formats import Messages, detect_format, to_messages, used_columns
from ftkit.template import render, show_example, tokenize, trained_share

__all__ = [
    "Splits", "detect_format", "digest", "load_examples", "prompt", "render", "samples", "show_example", "split",
    "to_messages", "tokenize", "trained_share",
]  # fmt: skip

_SAMPLES = {
    "invoices": (
        "invoices.jsonl",
        "extract products and prices from an invoice; train, val and test share layouts and vendors",
    ),
    "invoices_unseen": (
        "invoices_unseen.jsonl",
        "the same task with layouts, vendors and products that training never saw",
    ),
    "general": ("general.jsonl", "short general questions with checkable answers, to see what a model forgot"),
}
_BATCH = 10_000
_SHOWN = 10


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
    dataset = _collect(name, rows, mapping, on_error)
    if split is None:
        return dataset
    there = set(dataset["split"]) if "split" in dataset.column_names else set()
    if split not in there:
        raise DataError(f"{name} has no split {split!r}; there are: {', '.join(sorted(map(str, there))) or 'none'}.")
    return dataset.select([i for i, value in enumerate(dataset["split"]) if value == split])


def split(examples: Any, *, val: float = 0.1, test: float = 0.1, seed: int = 42) -> Splits:
    """Cut examples into train, val and test; rows with the same prompt stay together, so no answer leaks.

    Examples that bring a `split` column with train, val and test (the bundled sets do) keep that cut.

    Raises:
        DataError: too few rows, or shares that leave nothing to train on.
    """
    if {"train", "val", "test"} <= (set(examples["split"]) if "split" in examples.column_names else set()):
        named = {n: [i for i, s in enumerate(examples["split"]) if s == n] for n in ("train", "val", "test")}
        return Splits(*(examples.select(named[n]) for n in ("train", "val", "test")))
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise DataError(f"val={val}, test={test}: each wants a share between 0 and 1, together below 1.")
    groups: dict[str, list[int]] = {}
    for index, messages in enumerate(examples["messages"]):
        groups.setdefault(json.dumps(prompt(messages), sort_keys=True), []).append(index)
    if len(groups) < 3:
        raise DataError(
            f"{len(examples)} rows with {len(groups)} different prompts cannot be cut into three parts; at least 3 are wanted."
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    n_test, n_val = max(1, round(test * len(order))), max(1, round(val * len(order)))
    n_val = min(n_val, len(order) - n_test - 1)
    parts = (order[n_test + n_val :], order[n_test : n_test + n_val], order[:n_test])
    return Splits(*(examples.select(sorted(i for key in part for i in groups[key])) for part in parts))


def prompt(messages: Sequence[Mapping[str, str]]) -> Messages:
    """The turns before the last answer: what a model is asked."""
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return [{"role": m["role"], "content": m["content"]} for m in messages[:last]]


def digest(*parts: Any) -> str:
    """Twelve hex digits that change when any message of these datasets, or their order, changes."""
    running = hashlib.sha256()
    for part in parts:
        for messages in part["messages"]:
            running.update(json.dumps(messages, sort_keys=True, ensure_ascii=False).encode())
        running.update(b"\x00")
    return running.hexdigest()[:12]


def _open(source: Any, split: str | None) -> tuple[str, readers.Rows, str | None]:
    """Name, numbered rows, and the split that is still to be picked out."""
    if not isinstance(source, str | Path):
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
        raise DataError(f"{name!r} could not be read from the Hub: {(str(error) or type(error).__name__).splitlines()[0][:200]} "
                        "Is the name right, the network there, and for gated data `hf auth login` done?") from error  # fmt: skip
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _collect(name: str, rows: readers.Rows, mapping: Mapping[str, str] | None, on_error: str) -> Any:
    """Convert in batches to Arrow, so that a large file never stands in Python objects as a whole."""
    from datasets import Dataset, concatenate_datasets

    parts, bad, total = [], [], 0
    for batch in _batches(rows):
        format = None if mapping else _format(name, batch)
        good = []
        for where, row in batch:
            total += 1
            converted, problem = _convert(row, format, mapping)
            if problem:
                bad.append(f"{where} {problem}")
            else:
                good.append(converted)
        if good:
            parts.append(Dataset.from_list(_uniform(good)))
    if total == 0:
        raise DataError(f"{name} holds no rows.")
    if bad:
        listed = "\n  ".join(bad[:_SHOWN]) + (f"\n  … and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        if on_error == "raise" or not parts:
            skip = "Mend them, or leave them out with on_error='skip'." if parts else "No row can be used."
            raise DataError(f"{name}: {len(bad)} of {total} rows cannot be used:\n  {listed}\n{skip}")
        warnings.warn(f"{name}: left out {len(bad)} of {total} rows:\n  {listed}", FtkitWarning, stacklevel=3)
    if len({str(part.features) for part in parts}) > 1:  # own columns changed their type from one batch to the next
        parts = [part.map(_as_text, fn_kwargs={"keep": "messages"}, load_from_cache_file=False) for part in parts]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _batches(rows: readers.Rows) -> Iterator[list[tuple[str, Any]]]:
    batch = []
    for item in rows:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _format(name: str, batch: list[tuple[str, Any]]) -> str:
    columns = {column for _, row in batch[:100] if isinstance(row, Mapping) for column in row}
    try:
        return detect_format(columns)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _convert(row: Any, format: str | None, mapping: Mapping[str, str] | None) -> tuple[dict[str, Any], str | None]:
    if not isinstance(row, Mapping):
        return {}, f"is {type(row).__name__} ({str(row)[:40]!r}), wanted an object with columns"
    try:
        messages = to_messages(row, format, mapping)
    except DataError as error:
        return {}, str(error)
    used = set(mapping.values()) if mapping else used_columns(format or "messages")
    return {**{str(k): v for k, v in row.items() if k not in used}, "messages": messages}, None


def _as_text(row: dict[str, Any], keep: str) -> dict[str, Any]:
    return {k: v if k == keep or v is None else v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}


def _uniform(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make extra columns fit one Arrow type: a column of mixed or nested values becomes JSON text."""
    for column in {name for row in rows for name in row if name != "messages"}:
        values = [row[column] for row in rows if row.get(column) is not None]
        words = all(isinstance(v, list) and all(isinstance(w, str) for w in v) for v in values)
        plain = words or (len(kinds := {type(v) for v in values}) == 1 and kinds <= {str, int, float, bool})
        for row in rows:
            value = row.get(column)
            row[column] = value if plain or value is None else json.dumps(value, ensure_ascii=False, default=str)
    return rows
