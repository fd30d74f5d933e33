"""Rows out of files, one at a time, each with the line or row number that a person can look up.

A row that is broken for itself (a line that is not JSON) comes out as a `DataError` in place of its columns, so that the
caller decides; a file that cannot be read at all raises.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ftkit.errors import DataError

MAX_LINE_BYTES = 16 * 2**20

_CHUNK = 4 * 2**20  # ijson's default of 64 KiB makes a long string quadratic

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
    _refuse_utf16(path)
    rows = _READERS[path.suffix.lower()](path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} holds no rows.")
    return itertools.chain([first], rows)


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        mark = file.read(2)
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{path} is UTF-16 text (byte order mark {mark.hex(' ')}); wanted UTF-8. "
            f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > fixed{path.suffix}"
        )


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
                    f"is longer than {MAX_LINE_BYTES // 2**20} MiB: no model reads that much. "
                    "Is it one JSON object a line? Split long documents first."
                ),
            )
            continue
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield (
                number,
                DataError(
                    f"is not UTF-8 at byte {error.start + 1} (0x{raw[error.start]:02x}). "
                    f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed{path.suffix}"
                ),
            )


def _text_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Lines of a file of which no line can be left out."""
    for number, line in _lines(path, file):
        if isinstance(line, DataError):
            raise DataError(f"{path} line {number} {line}")
        yield line


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in _lines(path, file):
            if isinstance(line, DataError):
                yield f"line {number}", line
            elif number == 1 and line.lstrip().startswith("["):
                yield from _json(path)
                return
            elif line.strip():
                yield f"line {number}", _parse(line)


def _parse(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_once)
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:
        if not isinstance(error, json.JSONDecodeError):
            return DataError(_beyond_python(error))
        cut = " The line ends in the middle: was the file cut off?" if not line.endswith("\n") else ""
        return DataError(f"is not JSON ({error}).{cut}")


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object, unless a key stands there twice: one of the two values would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise DataError(_twice(next(name for name in names if names.count(name) > 1)))
    return row


def _twice(name: str) -> str:
    return f"has the column {name[:60]} twice, and only one of the two could be kept. Rename or remove one."


def _beyond_python(error: Exception) -> str:
    """What is wrong with JSON that is well-formed, but holds what Python refuses to read."""
    if isinstance(error, RecursionError):
        return f"is nested more than {MAX_DEPTH} levels deep. Write the inner part as text."
    return f"holds a number that is too long ({str(error).split(';')[0]}). Write it as text, in quotes."


def _json(path: Path) -> Rows:
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8-sig", errors="replace").lstrip()
    if head.startswith("{") and _is_one_object_a_line(head):
        yield from _jsonl(path)
    elif head.startswith("["):
        yield from _json_list(path)
    else:
        yield from _json_document(path)


def _json_list(path: Path) -> Rows:
    """The elements of one long list, one at a time: the file never stands in memory as a whole."""
    import ijson

    repeated: list[str] = []

    class Once(dict[str, Any]):
        """Notes a key that comes again; raising in here would confuse the parser, which is written in C."""

        def __setitem__(self, key: str, value: Any) -> None:
            if key in self:
                repeated.append(key)
            super().__setitem__(key, value)

    number = before = 0
    try:
        with path.open("rb") as file:
            shallow = Shallow(path, file)
            rows = ijson.items(shallow, "item", use_float=True, buf_size=_CHUNK, map_type=Once)
            for number, row in enumerate(rows, 1):
                if repeated:
                    row = DataError(_twice(repeated[0]))
                    repeated.clear()
                elif shallow.read_bytes - before > MAX_LINE_BYTES and len(json.dumps(row)) > MAX_LINE_BYTES:
                    row = DataError(
                        f"is longer than {MAX_LINE_BYTES // 2**20} MiB: no model reads that much. "
                        "Split long documents first."
                    )
                before = shallow.read_bytes
                yield f"row {number}", row
    except DataError:
        raise
    except (ijson.JSONError, UnicodeDecodeError):
        # the strict parser says where; should it be content with the file, it goes on where the other stopped
        yield from itertools.islice(_json_document(path), number, None)
    except ValueError as error:
        raise DataError(f"{path} row {number + 1} {_beyond_python(error)}") from error


def _json_document(path: Path) -> Rows:
    with path.open("rb") as file:
        text = "".join(_text_lines(path, file))
    if not text.strip():
        raise DataError(f"{path} holds no rows: it is blank.")
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not JSON ({error}).{_hint(text, error)}") from error
    except DataError as error:
        raise DataError(f"{path}: a row {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} {_beyond_python(error)}") from error
    yield from ((f"row {number}", row) for number, row in enumerate(_elements(path, document), 1))


def _hint(text: str, error: json.JSONDecodeError) -> str:
    """What most likely went wrong with a document that is not JSON."""
    rest = text[error.pos :].lstrip()
    comma = rest.startswith(",") or text[: error.pos].rstrip().endswith(",")
    if comma and rest.lstrip(", \t\r\n")[:1] in ("]", "}"):
        return " A comma stands before a closing bracket: remove it."
    return "" if text.rstrip().endswith(("]", "}")) else " The file ends in the middle: was it cut off?"


def _elements(path: Path, document: Any) -> list[Any]:
    """The rows of a document: itself a list, an object around one list of objects, or a single row."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise DataError(f"{path}: wanted a list of objects, found {type(document).__name__}.")
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    wrapped = len(lists) == 1 and not {"messages", "conversations"} & set(lists)
    return next(iter(lists.values())) if wrapped else [document]


def _is_one_object_a_line(head: str) -> bool:
    first, _, rest = head.partition("\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _csv(path: Path) -> Rows:
    with path.open("rb") as file:
        lines = _text_lines(path, file)
        head = next(lines, "")
        reader = csv.reader(itertools.chain([head], lines), delimiter=_delimiter(path, head), strict=True)
        limit = csv.field_size_limit(MAX_LINE_BYTES)  # the default of 128 KiB refuses long documents; put back below
        try:
            header = next(reader, [])
            if not "".join(header).strip():
                raise DataError(f"{path}: the first line is blank; a header with the columns' names is wanted.")
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f"{path}: the column {', '.join(twice)} stands there more than once. Rename one.")
            for begin, cells in iter(lambda: (reader.line_num + 1, next(reader, None)), None):
                if cells is None:
                    return
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
        except csv.Error as error:
            hint = "A quote is never closed, or a cell is too long: save it as JSONL."
            raise DataError(f"{path} line {reader.line_num}: not CSV ({error}). {hint}") from error
        finally:
            csv.field_size_limit(limit)


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
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}: the column {', '.join(twice)} stands there more than once. Rename one.")
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

MAX_DEPTH = 100

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Shallow:
    """A JSON file to read from that stops where it nests too deep, before a parser's memory grows with the depth."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.read_bytes = 0
        self._path, self._file = path, file
        self._depth, self._in_string, self._escape = 0, False, b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as a file gives them.

        Raises:
            DataError: they open more than 100 lists and objects within each other.
        """
        chunk = self._file.read(size)
        self.read_bytes += len(chunk)
        text = self._escape + chunk
        slashes = len(text) - len(text.rstrip(b"\\"))
        self._escape = b"\\" if chunk and slashes % 2 else b""
        text = text[: len(text) - len(self._escape)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.split(b'"')
        outside = b"".join(parts[int(self._in_string) :: 2]).translate(None, _NO_BRACKETS)
        self._in_string ^= len(parts) % 2 == 0
        depths = list(itertools.accumulate((1 if c in b"[{" else -1 for c in outside), initial=self._depth))
        self._depth = depths[-1]
        if max(depths) > MAX_DEPTH:
            raise DataError(f"{self._path} is nested more than {MAX_DEPTH} levels deep. Write the inner part as text.")
        return chunk
