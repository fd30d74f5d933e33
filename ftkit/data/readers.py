"""Rows out of files, one at a time, each with the line or row number that a person can look up.

A row that is broken for itself (a line that is not JSON) comes out as a `DataError` in place of its columns, so that
the caller decides; a file that cannot be read at all raises. Knows files, nothing of what their columns mean.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ftkit.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
_MOST = f"{MAX_LINE_BYTES // 2**20} MiB"
_SPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]

Rows = Iterator[tuple[str, Any]]


def read(path: Path) -> Rows:
    """Yield `(where, row)` for each row of a JSON, JSONL, CSV, TSV or Parquet file; `where` is "line 7" or "row 7".

    A `row` is a dict, or what stands in its place: another JSON value, or a DataError that says why it cannot be read.

    Raises:
        DataError: no such file, empty, an unknown ending, or damaged beyond single rows.
    """
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in _READERS) if path.parent.is_dir() else []
        folder = path.parent.resolve()
        there = f"{folder} holds: {', '.join(beside[:8])}." if beside else f"{folder} holds no data files."
        raise DataError(f"{path} does not exist. {there}")
    if path.is_dir() or path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: wanted a file that ends in {', '.join(_READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Was the download or export cut off?")
    with path.open("rb") as file:
        mark = file.read(2)
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{path} is UTF-16 text (byte order mark {mark.hex(' ')}); wanted UTF-8. "
            f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > fixed{path.suffix}"
        )
    rows = _READERS[path.suffix.lower()](path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} holds no rows.")
    return itertools.chain([first], rows)


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in _lines(path, file):
            if isinstance(line, DataError):
                yield f"line {number}", line
            elif number == 1 and line.lstrip().startswith("["):
                yield from _json(path)
                return
            elif line.strip():
                yield f"line {number}", _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        cut = " The line ends in the middle: was the file cut off?" if not line.endswith("\n") else ""
        return DataError(f"is not JSON ({error}).{cut}")
    except (ValueError, RecursionError) as error:
        return DataError(_beyond_python(error))


def _beyond_python(error: Exception) -> str:
    """What is wrong with JSON that is well-formed, but holds what Python refuses to read."""
    if isinstance(error, RecursionError):
        return "is nested too many levels deep. Write the inner part as text."
    return f"holds a number that is too long ({str(error).split(';')[0]}). Write it as text, in quotes."


def _json(path: Path) -> Rows:
    """The rows of a document: a list, an object around one list of objects, or one object (perhaps one a line)."""
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8-sig", errors="replace").lstrip()
    if head.startswith("{") and _is_one_object_a_line(head):
        yield from _jsonl(path)
        return
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line} {_not_utf8(path, error)}") from error
    if not text.strip():
        raise DataError(f"{path} holds no rows: it is blank.")
    if head.startswith("["):
        yield from _elements(path, text)
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(str(path), text, error) from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: wanted a list of objects, found {type(document).__name__}.")
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    wrapped = len(lists) == 1 and not {"messages", "conversations"} & set(lists)
    rows = next(iter(lists.values())) if wrapped else [document]
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _is_one_object_a_line(head: str) -> bool:
    first, _, rest = head.partition("\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _elements(path: Path, text: str) -> Rows:
    """The elements of a long list, one at a time: only its text stands in memory, and an error names the row."""
    decoder = json.JSONDecoder()
    number, place = 0, _past_space(text, text.index("[") + 1)
    more = not text.startswith("]", place)
    while more:
        number += 1
        try:
            row, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _not_json(f"{path} row {number}", text, error) from error
        if end - place > MAX_LINE_BYTES:
            row = DataError(f"is longer than {_MOST}: no model reads that much. Split long documents first.")
        yield f"row {number}", row
        end = _past_space(text, end)
        more = text.startswith(",", end)
        place = _past_space(text, end + 1) if more else end
    if text[place:].rstrip() != "]":
        unended = json.JSONDecodeError("Expecting ',' or the end of the list", text, place)
        raise _not_json(str(path), text, unended)


def _past_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]


def _not_json(where: str, text: str, error: Exception) -> DataError:
    if not isinstance(error, json.JSONDecodeError):
        return DataError(f"{where} {_beyond_python(error)}")
    cut = "" if text.rstrip().endswith(("]", "}")) else " The file ends in the middle: was it cut off?"
    return DataError(f"{where} line {error.lineno}: not JSON ({error}).{cut}")


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str | DataError]]:
    for number in itertools.count(1):
        raw = file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):  # what follows belongs to the same line
                raw = file.readline(MAX_LINE_BYTES)
            yield (
                number,
                DataError(
                    f"is longer than {_MOST}: no model reads that much. "
                    "Is it one JSON object a line? Split long documents first."
                ),
            )
            continue
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, DataError(_not_utf8(path, error))


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    return (
        f"is not UTF-8 at byte {column} (0x{error.object[error.start]:02x}). "
        f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed{path.suffix}"
    )


def _csv(path: Path) -> Rows:
    with path.open("rb") as file:
        lines = _text_lines(path, file)
        head = next(lines, "")
        reader = csv.reader(itertools.chain([head], lines), delimiter=_delimiter(path, head), strict=True)
        limit = csv.field_size_limit(MAX_LINE_BYTES)  # the default of 128 KiB refuses long documents; put back below
        try:
            yield from _table(path, reader)
        except csv.Error as error:
            hint = "A quote is never closed, or a cell is too long: save it as JSONL."
            raise DataError(f"{path} line {reader.line_num}: not CSV ({error}). {hint}") from error
        finally:
            csv.field_size_limit(limit)


def _table(path: Path, reader: Any) -> Rows:
    header: list[str] = next(reader, [])
    if not "".join(header).strip():
        raise DataError(f"{path}: the first line is blank; a header with the columns' names is wanted.")
    _refuse_twice(path, header)
    begin = reader.line_num + 1
    for cells in reader:
        if len(cells) == len(header):
            yield f"line {begin}", dict(zip(header, cells, strict=True))
        elif cells:
            yield (
                f"line {begin}",
                DataError(
                    f"has {len(cells)} cells, but the header has {len(header)} ({', '.join(header[:6])}). "
                    "Put quotes around text that holds the separator."
                ),
            )
        begin = reader.line_num + 1


def _text_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Lines of a file of which no line can be left out."""
    for number, line in _lines(path, file):
        if isinstance(line, DataError):
            raise DataError(f"{path} line {number} {line}")
        yield line


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: the column {', '.join(twice)} stands there more than once. Rename one.")


def _delimiter(path: Path, head: str) -> str:
    """A tab in a .tsv; else the comma, or the semicolon that spreadsheets write where the comma is a decimal sign."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in head and "," not in head else ","


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow.names)
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
