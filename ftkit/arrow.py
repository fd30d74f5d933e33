"""Rows into Arrow tables of one type, on disk where there are many: a million rows never stand in Python lists."""

import atexit
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftkit import storage

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
        with storage.explained(Path(path)), ArrowWriter(path=path, features=table.features) as writer:
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
