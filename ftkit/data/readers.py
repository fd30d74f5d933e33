"""Rows out of files, one at a time, each with the line or row number that a person can look up.

A row that is broken for itself (a line that is not JSON) comes out as a `DataError` in place of its columns, so that
the caller decides; a file that cannot be read at all raises. Knows files, folders of them and packed ones, nothing of
what their columns mean.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import os
import re
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from ftkit.errors import DataError, FtkitError

MAX_LINE_BYTES = 16 * 2**20
_MOST = f"{MAX_LINE_BYTES // 2**20} MiB"
_DOCUMENT_BYTES = 2 * 2**30  # a JSON document, or a packed Parquet file, stands in memory as a whole
_UNPACKED, _TIMES = 256 * 2**20, 200  # bytes that any packed file may hold; from there on, times its own size
_FOLDER = 10_000  # files
_ARROW_ROWS = 1024
_QUOTED_LINES = 100  # of tab-separated text, that a quote may hold together
_SPACE = re.compile(r"[ \t\n\r\ufeff]*")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)

_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAMED_PART = re.compile(
    rf"(?<![^\W\d_])({'|'.join(sorted(_PARTS, key=len, reverse=True))})(?![^\W\d_])", re.IGNORECASE
)

# Columns of one row: an object that has one of them is no wrapping around a list of rows.
_OF_A_ROW = {
    *("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat"),
    *("prompt", "instruction", "question", "text"),
}

_TURNS = ({"role", "content"}, {"from", "value"})

# Files of `save_to_disk` and of the Hub that stand beside data.
_BESIDE = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"})

_OTHER_KINDS = {
    b"\x1f\x8b": "packed by gzip: give it the ending .gz after its own",
    b"BZh": "packed by bzip2: give it the ending .bz2 after its own",
    b"\x28\xb5\x2f\xfd": "packed by zstd: give it the ending .zst after its own",
    b"PK\x03\x04": "a zip archive or a spreadsheet: give an archive the ending .zip, or save the sheet as CSV",
    b"PAR1": "Parquet: give it the ending .parquet",
    b"ARROW1": "an Arrow file: give it the ending .arrow",
    b"version https://git-lfs": "a pointer of Git LFS, and the data is elsewhere: run git lfs pull",
    b"<!DOCTYPE": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV in UTF-8."),
    **dict.fromkeys((".tar", ".tgz", ".xz", ".7z", ".rar"), "Unpack it first."),
}

Row = dict[str, Any]
Rows = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class _File:
    """A file of data wherever it stands: what messages call it, and its place in a folder or archive."""

    path: Path
    name: str
    inner: str
    ending: str  # without that of a packing
    member: str = ""  # of the archive at `path`

    def bytes(self) -> BinaryIO:
        """What it holds, out of its packing."""
        unpack = _PACKED.get(PurePath(self.member or self.path).suffix.lower())
        if self.member:
            with zipfile.ZipFile(self.path) as archive:
                raw: Any = archive.open(self.member)
        else:
            raw = self.path.open("rb", buffering=0)
        if unpack or self.member:
            most = max(_UNPACKED, _TIMES * self.path.stat().st_size)
            raw = _Bounded(self.name, raw, unpack(raw) if unpack else raw, most)
        return io.BufferedReader(raw)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The bytes, if they do not begin like a file of another kind."""
        with self.bytes() as stream:
            start = stream.peek(32)[:32]  # type: ignore[attr-defined]
            for mark, what in _OTHER_KINDS.items():
                if start.lower().startswith(mark.lower()) and not what.endswith(self.ending):
                    raise DataError(f"{self.name} is {what}.")
            text = self.ending not in (".parquet", ".arrow")
            if text and (start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:4]):
                raise DataError(
                    f"{self.name} is UTF-16 text (it begins with {start[:2].hex(' ')}); wanted UTF-8. "
                    f"Convert it: {_iconv(self.name, 'UTF-16')}"
                )
            yield stream


def read(path: Path) -> Rows:
    """Yield `(where, row)` for each row; `where` is "line 7" or "row 7", in a folder "row 7 of train-0.parquet".

    `path` is a file of JSON (a list, a value a line, or one after another), CSV, TSV, Parquet or Arrow, perhaps packed
    (.gz, .bz2, .zst, .zip), or a folder of files of one kind, such as `save_to_disk` writes. Names of files that begin
    with train, validation or test fill a column `split`. A `row` is a dict, or what stands in its place: another JSON
    value, or a DataError that says why it cannot be read.

    Raises:
        DataError: no such file, empty, an unknown ending, or damaged beyond single rows.
    """
    name = said(path)
    rows = guarded(name, _rows(path, name))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name} holds no rows.")
    return itertools.chain([first], rows)


def part(name: Any) -> str | None:
    """Train, val or test, by any name that files have for it; None for another name."""
    return _PARTS.get(str(name).strip().lower())


def said(path: str | Path) -> str:
    """A path as messages show it: on one line, whatever characters it has, and not too long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
    return text if len(text) <= 300 else f"{text[:150]}…{text[-149:]}"


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what the system and other libraries raise about a file into a DataError that says where."""
    try:
        yield
    except FtkitError:
        raise
    except (
        *(OSError, EOFError, ValueError, LookupError, ArithmeticError, MemoryError, RuntimeError, AssertionError),
        *(zlib.error, zipfile.BadZipFile, csv.Error),
    ) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{where} cannot be read: {error.strerror}.") from error
        reason = said(str(error) or type(error).__name__)[:120]
        raise DataError(f"{where} is damaged, cut off, or of another kind ({reason}).") from error


def guarded(where: str, rows: Rows) -> Rows:
    """The same rows; what goes wrong on the way to one is explained."""
    with explained(where):
        yield from rows


def unpadded(row: Row) -> Row:
    """A row of an Arrow table without the empty keys that other rows' objects have: a struct holds all keys of all."""
    return {key: _without_none(value) for key, value in row.items()}


def arrow_rows(where: str, batches: Iterable[Any]) -> Rows:
    """Rows of Arrow batches or tables; a row with a cell that cannot be read is a DataError."""
    number, rest = 0, iter(batches)
    while True:
        with explained(f"{where} after row {number}"):
            batch = next(rest, None)
        if batch is None:
            return
        for start in range(0, batch.num_rows, _ARROW_ROWS):
            for row in _python_rows(batch.slice(start, _ARROW_ROWS)):
                number += 1
                yield f"row {number}", row


def _python_rows(batch: Any) -> list[Row | DataError]:
    try:
        with explained("a cell"):
            batch.validate(full=True)
            return [unpadded(row) for row in batch.to_pylist()]
    except DataError as error:
        if batch.num_rows == 1:
            return [DataError(f"has a cell that cannot be read: {error.__cause__}")]
    return [_python_rows(batch.slice(i, 1))[0] for i in range(batch.num_rows)]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _rows(path: Path, name: str) -> Rows:
    files = _files(path, name)
    parts = [_part_of_file(file.inner, _NAMED_PART.match) for file in files]
    if not any(parts):  # perhaps x_train.jsonl beside x_test.jsonl: words within names, where one of them is train
        within = [_part_of_file(file.inner, _NAMED_PART.search) for file in files]
        parts = within if "train" in map(part, within) else parts
    for file, named in zip(files, parts, strict=True):
        for place, found in _READERS[file.ending](file):
            row = {"messages": found} if isinstance(found, list) else found  # a chat as the list of its turns
            if any(parts) and isinstance(row, dict):
                row = {"split": named} | row
            yield f"{place} of {file.inner}" if len(files) > 1 else place, row


def _part_of_file(name: str, find: Callable[[str], re.Match[str] | None]) -> str | None:
    """The part that a file's name begins with or holds, as `find` looks for it, or else its folder's."""
    matches = filter(None, map(find, reversed(PurePath(name).parts)))
    return next((found[1].lower() for found in matches), None)


def _files(path: Path, name: str, inner: str = "") -> list[_File]:
    """The data file at a path, or those in the folder or archive that stands there."""
    if not path.exists():
        folder = path.parent.resolve()
        beside = sorted(said(p.name) for p in folder.iterdir() if _is_data(p.name)) if folder.is_dir() else []
        there = f"holds: {', '.join(beside[:8])}." if beside else "holds no data files."
        raise DataError(f"{name} does not exist. {said(folder)} {there}")
    if path.is_dir():
        found = {said(file.relative_to(path)): file for file in _walked(path, name)}
        return _of_one_kind(name, [_files(file, f"{name}/{inner}", inner) for inner, file in found.items()])
    if not path.is_file():
        raise DataError(f"{name} is no ordinary file.")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty (0 bytes). Was the download or export cut off?")
    if path.suffix.lower() == ".zip":
        return _of_one_kind(name, [_members(path, name, inner)])
    ending = _ending(path.name)
    if ending is None:
        advice = _ADVICE.get(path.suffix.lower()) or _ADVICE.get(Path(path.stem).suffix.lower(), "")
        wanted = f"{', '.join(_READERS)}, perhaps packed ({', '.join(_PACKED)}, .zip)"
        raise DataError(f"{name}: wanted a file that ends in {wanted}. {advice}".rstrip())
    return [_File(path, name, inner, ending)]


def _walked(folder: Path, name: str) -> list[Path]:
    """Data files of a folder and of folders in it, in their order, without hidden ones and what `map` left behind."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [inner for inner in folders if not inner.startswith((".", "_"))]
        found += [Path(here, file) for file in names if _is_data(file)]
        if len(found) > _FOLDER:
            raise DataError(f"{name} holds more than {_FOLDER:,} files. Give the folder that holds the data alone.")
    return sorted(found)


def _is_data(name: str) -> bool:
    """Whether a file in a folder is looked at: data by its ending, and no hidden file, description or cache."""
    data = _ending(name) or name.lower().endswith(".zip")
    return bool(data) and name not in _BESIDE and not name.startswith((".", "_", "cache-"))


def _members(path: Path, name: str, inner: str) -> list[_File]:
    with zipfile.ZipFile(path) as archive:
        members = sorted(member.filename for member in archive.infolist() if not member.is_dir())
    files = []
    for member in members:
        ending, place = _ending(member), said(member)
        if ending and _is_data(PurePath(member).name) and not member.startswith("__MACOSX"):
            step = f"{inner}/{place}" if inner else place
            files.append(_File(path, f"{name}/{place}", step, ending, member))
    return files


def _of_one_kind(name: str, found: list[list[_File]]) -> list[_File]:
    files = list(itertools.chain.from_iterable(found))
    kinds = Counter(file.ending for file in files)
    if not files:
        raise DataError(f"{name} holds no data files. Their names end in {', '.join(_READERS)}.")
    if len({_READERS[ending] for ending in kinds}) > 1:
        listed = ", ".join(f"{number} {ending}" for ending, number in sorted(kinds.items()))
        raise DataError(f"{name} holds files of several kinds ({listed}). Give one of them, or a folder of one kind.")
    return files


def _ending(name: str) -> str | None:
    """The ending that tells how a file's rows are read, below that of a packing."""
    path = PurePath(name)
    ending = path.suffix.lower()
    if ending in _PACKED:
        ending = PurePath(path.stem).suffix.lower()
    return ending if ending in _READERS else None


class _Bounded(io.RawIOBase):
    """What a packed file holds, up to a size that no honest text reaches."""

    def __init__(self, name: str, packed: Any, inner: Any, most: int) -> None:
        self._name, self._packed, self._inner, self._left = name, packed, inner, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; a DataError where more comes out than text can be."""
        chunk = self._inner.read(len(buffer))
        self._left -= len(chunk)
        if self._left < 0:
            raise DataError(
                f"{self._name} unpacks to more than {_TIMES} times its size, as no text does: was it made to fill "
                "memory? If you trust it, unpack it yourself."
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """Close both files."""
        self._inner.close()
        self._packed.close()
        super().close()


def _unzstd(raw: Any) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(raw, "zstd")


def _json(file: _File) -> Rows:
    """JSON by its layout: a value a line, or one document (a list, an object), or values that take several lines."""
    with file.opened() as stream:
        lines = (line for _, line in _lines(file, stream) if isinstance(line, DataError) or line.strip())
        first = next(lines, "")
        alone = isinstance(first, str) and next(lines, None) is None
    lined = file.ending != ".json"
    if isinstance(first, str):
        try:
            json.loads(first)
            lined = not alone or (lined and first.lstrip("\ufeff \t").startswith("{"))
        except json.JSONDecodeError as error:
            goes_on = error.pos >= len(first.rstrip(" \t\r\n,")) and not error.msg.startswith("Unterminated")
            lined = lined and (alone or not goes_on)
        except (ValueError, RecursionError):
            pass
    yield from _by_line(file) if lined else _document(file)


def _by_line(file: _File) -> Rows:
    with file.opened() as stream:
        for number, line in _lines(file, stream):
            if isinstance(line, DataError) or line.strip():
                yield f"line {number}", _parsed(line)


def _parsed(line: str | DataError) -> Any:
    if isinstance(line, DataError):
        return line
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


def _document(file: _File) -> Rows:
    with file.opened() as stream:
        content = _whole(file, stream)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file.name} line {line} {_not_utf8(file, error)}") from error
    del content
    start = _past_space(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _values(file.name, text, start + 1, listed=True)
        return
    try:
        document = json.loads(text[start:])
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _values(file.name, text, start, listed=False)
        elif file.ending != ".json":  # only its first line is broken
            yield from _by_line(file)
        else:
            raise _not_json(file.name, text, error) from error
    else:
        yield from ((f"row {number}", row) for number, row in enumerate(shaped(file.name, document), 1))


def _whole(file: _File, stream: BinaryIO) -> bytearray:
    content = bytearray()
    while chunk := stream.read(2**20):
        content += chunk
        if len(content) > _DOCUMENT_BYTES:
            raise DataError(f"{file.name} is one document of more than 2 GiB. Write one object a line, as JSONL.")
    return content


def shaped(name: str, document: Any) -> list[Any]:
    """The rows of one object: lists under the names of parts, the one list in it, columns, or the object itself."""
    if not isinstance(document, dict):
        raise DataError(f"{name}: wanted a list of objects, found {type(document).__name__}.")
    values = list(document.values())
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and isinstance(v[0], dict | list)}
    if any(map(part, lists)):
        rows = itertools.chain.from_iterable([(key, row) for row in rows] for key, rows in lists.items())
        return [{"split": key} | (row if isinstance(row, dict) else {"messages": row}) for key, row in rows]
    if set(document) == {"columns", "index", "data"} and "data" in lists:  # pandas, orient="split"
        return [dict(zip(document["columns"], cells, strict=False)) for cells in document["data"]]
    columns = [list(value.values()) if isinstance(value, dict) else value for value in values]
    if all(isinstance(value, dict) and value for value in values) and len(set(map(tuple, values))) == 1:
        if all(key.isdecimal() for key in document):  # pandas, orient="index"
            return values
        tabled = all(key.isdecimal() for key in values[0])  # pandas, orient="columns"
    else:
        tabled = len(columns) > 1 and all(isinstance(c, list) and c and not isinstance(c[0], dict) for c in values)
    if tabled and len(set(map(len, columns))) == 1:
        return [dict(zip(document, cells, strict=True)) for cells in zip(*columns, strict=True)]
    wrapped = len(lists) == 1 and not _OF_A_ROW & set(document)
    return next(iter(lists.values())) if wrapped else [document]


def _values(name: str, text: str, place: int, *, listed: bool) -> Rows:
    """The elements of a long list (one of turns is one chat), or values after one another; an error names the row.

    Only their text stands in memory.
    """
    decoder = json.JSONDecoder()
    number, begin, place = 0, place - 1, _past_space(text, place)
    more = not (listed and text.startswith("]", place))
    while more:
        number += 1
        try:
            row, end = decoder.raw_decode(text, place)
            if listed and number == 1 and isinstance(row, dict) and any(turn <= row.keys() for turn in _TURNS):
                row, end = decoder.raw_decode(text, begin)
                listed = False
        except (ValueError, RecursionError) as error:
            raise _not_json(f"{name} row {number}", text, error) from error
        if end - place > MAX_LINE_BYTES:
            row = DataError(f"is longer than {_MOST}: no model reads that much. Split long documents first.")
        yield f"row {number}", row
        end = _past_space(text, end)
        comma = text.startswith(",", end)  # without brackets around, some write commas all the same
        place = _past_space(text, end + 1) if comma else end
        more = comma if listed else place < len(text)
    if listed and text[place:].rstrip() != "]":
        unended = json.JSONDecodeError("Expecting ',' or the end of the list", text, place)
        raise _not_json(name, text, unended)


def _past_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]


def _not_json(where: str, text: str, error: Exception) -> DataError:
    if not isinstance(error, json.JSONDecodeError):
        return DataError(f"{where} {_beyond_python(error)}")
    cut = "" if text.rstrip().endswith(("]", "}")) else " The file ends in the middle: was it cut off?"
    return DataError(f"{where} line {error.lineno}: not JSON ({error}).{cut}")


def _text_lines(file: _File, stream: BinaryIO) -> Iterator[str]:
    """Lines of a file of which no line can be left out."""
    for number, line in _lines(file, stream):
        if isinstance(line, DataError):
            raise DataError(f"{file.name} line {number} {line}")
        yield line


def _lines(file: _File, stream: BinaryIO) -> Iterator[tuple[int, str | DataError]]:
    for number in itertools.count(1):
        raw = stream.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        if len(raw) > MAX_LINE_BYTES:
            hint = "Is it one JSON object a line? Split long documents first."
            yield number, DataError(f"is longer than {_MOST}: no model reads that much. {hint}")
            while raw and not raw.endswith(b"\n"):  # what follows belongs to the same line
                raw = stream.readline(MAX_LINE_BYTES)
            continue
        try:
            yield number, raw.decode().lstrip("\ufeff")
        except UnicodeDecodeError as error:
            yield number, DataError(_not_utf8(file, error))


def _not_utf8(file: _File, error: UnicodeDecodeError) -> str:
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    found = error.object[error.start]
    return f"is not UTF-8 at byte {column} (0x{found:02x}). Convert it: {_iconv(file.name, 'WINDOWS-1252')}"


def _iconv(name: str, encoding: str) -> str:
    unpacked = _unpacked_name(name)
    return f"iconv -f {encoding} -t UTF-8 {unpacked} > fixed{PurePath(unpacked).suffix}"


def _unpacked_name(name: str) -> str:
    path = PurePath(name)
    return path.stem if path.suffix.lower() in _PACKED else path.name


def _csv(file: _File) -> Rows:
    with file.opened() as stream:
        limit = csv.field_size_limit(MAX_LINE_BYTES)  # the default of 128 KiB refuses long documents; put back below
        try:
            yield from _table(file, _text_lines(file, stream))
        finally:
            csv.field_size_limit(limit)


def _table(file: _File, lines: Iterator[str]) -> Rows:
    start = list(itertools.islice(lines, 10))
    if start and "\r" in start[0].rstrip("\r\n"):
        raise DataError(
            f"{file.name} ends its lines with carriage returns alone. Convert it: "
            f"tr '\\r' '\\n' < {_unpacked_name(file.name)} > fixed{file.ending}"
        )
    given = _SEPARATOR_LINE.fullmatch(start[0]) if start else None  # what Excel writes and obeys
    delimiter = given[1] if given else _delimiter(file, start)
    numbered = enumerate(itertools.chain(start, lines), 1)
    records = _records(file, (line for _, line in numbered), delimiter)
    if given:
        next(records)
    header = [name.strip() for name in next(records, (1, []))[1]]
    if not "".join(header).strip():
        raise DataError(f"{file.name}: the first line is blank; a header with the columns' names is wanted.")
    _refuse_twice(file, header)
    if delimiter == "\t" and not start[1 if given else 0].startswith('"'):
        records = _tabbed(numbered, len(header))
    for number, cells in records:
        if len(cells) == len(header):
            yield f"line {number}", dict(zip(header, cells, strict=True))
        elif cells:
            wanted = f"has {len(cells)} cells, but the header has {len(header)} ({', '.join(header[:6])})"
            yield f"line {number}", DataError(f"{wanted}. Put quotes around text that holds the separator.")


def _records(file: _File, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Cells as CSV has them, each record with the number of its first line."""
    reader, number = csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        hint = "A quote is never closed, or a cell is too long: save it as JSONL."
        raise DataError(f"{file.name} line {number}: not CSV ({error}). {hint}") from error


def _tabbed(numbered: Iterator[tuple[int, str]], width: int) -> Iterator[tuple[int, list[str]]]:
    """Cells between tabs, where a quote is a character like others.

    Some programs write quotes as in CSV around text with line breaks, tabs or quotes. They hold where lines cannot be
    rows for themselves, and where cells have quotes or tabs inside.
    """
    ahead: deque[tuple[int, str]] = deque()

    def held(text: str, more: list[tuple[int, str]]) -> Iterator[str]:
        """The line, and those that a quote may reach into."""
        yield text
        while len(more) < _QUOTED_LINES and (line := ahead.popleft() if ahead else next(numbered, None)):
            more.append(line)
            yield line[1]

    while line := ahead.popleft() if ahead else next(numbered, None):
        number, text = line
        cells = _between_tabs(text)
        if '"' in text:
            more: list[tuple[int, str]] = []
            try:
                record = next(csv.reader(held(text, more), delimiter="\t", strict=True))
            except csv.Error:
                record = []
            alone = all(len(_between_tabs(taken)) == width for _, taken in [line, *more])
            quoted = not alone if more else any('"' in cell or "\t" in cell for cell in record)
            if quoted and len(record) == width:
                cells = record
            else:
                ahead.extendleft(reversed(more))
        yield number, cells


def _between_tabs(line: str) -> list[str]:
    text = line.rstrip("\r\n")
    return text.split("\t") if text else []


def _refuse_twice(file: _File, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file.name}: the column {', '.join(twice)} stands there more than once. Rename one.")


def _delimiter(file: _File, start: list[str]) -> str:
    """The sign that cuts the header into most cells and the first row into as many."""

    def cells(sign: str) -> tuple[bool, int]:
        widths = [len(record) for record in itertools.islice(csv.reader(start, delimiter=sign), 2)]
        return widths[0] > 1 and len(set(widths)) == 1, widths[0]

    return max("\t,;|" if file.ending == ".tsv" else ",;\t|", key=cells) if start else ","


def _parquet(file: _File) -> Rows:
    import pyarrow
    import pyarrow.parquet

    with file.opened() as stream:
        plain = isinstance(stream.raw, io.FileIO)  # type: ignore[attr-defined]
        source = stream if plain else pyarrow.BufferReader(_whole(file, stream))
        with pyarrow.parquet.ParquetFile(source) as table:
            _refuse_twice(file, table.schema_arrow.names)
            yield from arrow_rows(file.name, table.iter_batches(batch_size=_ARROW_ROWS))


def _arrow(file: _File) -> Rows:
    """Arrow's format for files, or that for streams, which `datasets` writes."""
    import pyarrow

    with file.opened() as stream:
        if stream.peek(6)[:6] == b"ARROW1":  # type: ignore[attr-defined]
            table = pyarrow.ipc.open_file(pyarrow.BufferReader(_whole(file, stream)))
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        else:
            table = batches = pyarrow.ipc.open_stream(stream)
        _refuse_twice(file, table.schema.names)
        yield from arrow_rows(file.name, batches)


_READERS: dict[str, Callable[[_File], Rows]] = {
    ".json": _json,
    ".jsonl": _json,
    ".ndjson": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}

_PACKED: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _unzstd}

ENDINGS = frozenset({*_READERS, *_PACKED, ".zip"})
