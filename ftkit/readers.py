"""Rows out of files, one at a time, each with the line or row number that a person can look up."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ftkit.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
Row = dict[str, Any]
Rows = Iterator[tuple[str, Any]]


def read(path: Path) -> Rows:
    """Yield `(where, row)` for each row of a JSON, JSONL, CSV, TSV or Parquet file; `where` is "line 7" or "row 7".

    Raises:
        DataError: no such file, empty, not UTF-8, truncated, a line beyond 16 MiB, or an unknown ending.
    """
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in _READERS) if path.parent.is_dir() else []
        there = f"{path.parent} holds: {', '.join(beside[:8])}." if beside else f"{path.parent} holds no data files."
        raise DataError(f"{path} does not exist. {there}")
    if path.is_dir() or path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: wanted a file that ends in {', '.join(_READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Was the download or export cut off?")
    rows = _READERS[path.suffix.lower()](path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} holds no rows.")
    return itertools.chain([first], rows)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    for number in itertools.count(1):
        raw = file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(f"{path} line {number} is longer than {MAX_LINE_BYTES // 2**20} MiB: no model reads that much. "
                            "Is it one JSON object a line? Split long documents first.")  # fmt: skip
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} line {number}, byte {error.start + 1}: not UTF-8 (0x{raw[error.start]:02x}). "
                            f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed{path.suffix}") from error  # fmt: skip


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in _lines(path, file):
            if number == 1 and line.lstrip().startswith("["):
                yield from _json(path)
                return
            if line.strip():
                yield f"line {number}", _parse(path, line, number)


def _parse(path: Path, line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        cut = " The line ends in the middle: was the file cut off?" if not line.endswith("\n") else ""
        raise DataError(f"{path} line {number}: not JSON ({error}).{cut}") from error


def _json(path: Path) -> Rows:
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8-sig", errors="replace").lstrip()
    if head.startswith("{") and _is_one_object_a_line(head):
        yield from _jsonl(path)
        return
    with path.open("rb") as file:
        text = "".join(line for _, line in _lines(path, file))
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "somewhere"
        ended = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()) - 1
        cut = " The file ends in the middle: was it cut off?" if ended else ""
        raise DataError(f"{path} {where}: not JSON ({error}).{cut}") from error
    if isinstance(document, dict):
        lists = {k: v for k, v in document.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
        document = (
            next(iter(lists.values()))
            if len(lists) == 1 and "messages" not in lists and "conversations" not in lists
            else [document]
        )
    if not isinstance(document, list):
        raise DataError(f"{path}: wanted a list of objects, found {type(document).__name__}.")
    yield from ((f"row {number}", row) for number, row in enumerate(document, 1))


def _is_one_object_a_line(head: str) -> bool:
    first, _, rest = head.partition("\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except json.JSONDecodeError:
        return False
    return True


def _csv(path: Path) -> Rows:
    with path.open("rb") as file:
        text = io.StringIO("".join(line for _, line in _lines(path, file)), newline="")
    reader = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        header = next(reader, [])
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path}: the column {', '.join(twice)} stands there more than once. Rename one.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(f"{path} line {reader.line_num}: {len(cells)} cells, but the header has {len(header)} "
                                f"({', '.join(header[:6])}). Put quotes around text that holds the separator.")  # fmt: skip
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        hint = "A quote is never closed, or a cell is longer than 128 KiB: save it as JSONL."
        raise DataError(f"{path} line {reader.line_num}: not CSV ({error}). {hint}") from error


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not Parquet, or damaged ({str(error)[:120]}).") from error


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
ENDINGS = frozenset(_READERS)
