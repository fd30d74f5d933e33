"""From `messages` to any other format: one row, or a file that `data.load_examples` reads back to the same messages.

What a format cannot hold is refused, never dropped: nothing is written until every row is known to fit.
"""

import csv
import datetime
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.data.formats import as_json, detect_format, parse_calls, parse_tools, to_messages, used_columns
from ftkit.errors import DataError

_BATCH = 2_000

_SHOWN = 10

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

_TURNS = {"messages": ("messages",), "sharegpt": ("conversations",), "prompt-completion": ("prompt", "completion")}

_Turns = Sequence[Mapping[str, str]]

_Row = dict[str, Any]

_Kinds = dict[str, set[str]]  # column to the kinds of its values; for a column of turns, to the keys of its turns


def from_messages(messages: Sequence[Mapping[str, Any]], format: str, *, tools: Any = None) -> dict[str, Any]:
    """One row of `format`, from which `data.to_messages` makes the same messages again.

    Args:
        messages: turns as `to_messages` gives them; tool calls as JSON text or as a list.
        format: alpaca, sharegpt, chatml, messages or prompt-completion.
        tools: schemas of the functions that the answers may call: a list or JSON text.

    Raises:
        DataError: turns that are in no order, or that this format cannot hold.
    """
    _known(format)
    turns = to_messages({"messages": messages}, "messages")
    schemas = parse_tools(tools)
    if format in ("alpaca", "chatml"):
        more = {key for turn in turns for key in turn} - {"role", "content"} | ({"tools"} if schemas else set())
        if more:
            fold = "" if more == {"name"} else "; write tools into the text first, with chat.fold_tools"
            raise DataError(f"has {', '.join(sorted(more))}, which {format} cannot hold{fold}")
    row = _WRITERS[format](turns)
    if schemas:
        row["tools"] = as_json(schemas, "tools") if format == "sharegpt" else schemas
    return row


def export(examples: Any, path: str | Path, format: str) -> Path:
    """Write examples to a JSONL, Parquet or CSV file, as the ending of `path` says; other columns come along.

    The rows are read twice and never held as a whole. In Parquet and CSV, nested values are JSON text.

    Args:
        examples: a Dataset with `messages` (and perhaps `tools`), or a list of such rows.
        path: appears whole or not at all; an older file is replaced.
        format: as for `from_messages`.

    Raises:
        DataError: rows that do not fit the format (numbers them all at once), or columns that it would read otherwise.
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path).expanduser()
    _known(format)
    if path.suffix.lower() not in _FILES or path.is_dir():
        raise DataError(f"{path}: wanted a file name that ends in {', '.join(_FILES)}.")
    if iter(examples) is examples:
        raise DataError(
            f"The rows are read twice, and a {type(examples).__name__} can be read once: give a list or a Dataset."
        )
    columns = _survey(examples, format)
    with files.disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            working = Path(folder) / path.name
            _FILES[path.suffix.lower()](working, (_row(example, format) for example in examples), columns, format)
            with working.open("rb") as file:
                os.fsync(file.fileno())
            working.replace(path)
    return path


def _known(format: str) -> None:
    if format not in _WRITERS:
        raise DataError(f"format={format!r} is not one of {', '.join(_WRITERS)}.")


def _survey(examples: Any, format: str) -> _Kinds:
    """Every column with the kinds of its values, once all rows are known to fit."""
    columns: _Kinds = {}
    bad, total = [], 0
    for total, example in enumerate(examples, 1):
        try:
            for name, value in _row(example, format).items():
                columns.setdefault(name, set()).update(_kinds(name, value, format))
        except DataError as error:
            bad.append(f"row {total} {error}")
    if total == 0:
        raise DataError("There are no rows to export.")
    if bad:
        listed = "\n  ".join(bad[:_SHOWN]) + (f"\n  … and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        raise DataError(f"{len(bad)} of {total} rows do not fit {format}, so nothing was written:\n  {listed}")
    if (read_as := detect_format(columns)) != format:
        raise DataError(
            f"With its other columns ({', '.join(columns)}) the file would be read as {read_as}, not as {format}. "
            "Remove or rename those first: examples.remove_columns([...])."
        )
    return columns


def _row(example: Any, format: str) -> _Row:
    if not isinstance(example, Mapping) or "messages" not in example:
        raise DataError("has no messages")
    row = from_messages(example["messages"], format, tools=example.get("tools"))
    own = {str(name): value for name, value in example.items() if name not in ("messages", "tools")}
    if taken := sorted(set(own) & used_columns(format)):
        raise DataError(
            f"has columns of its own that {format} reads as part of the chat: {', '.join(taken)}. Rename them"
        )
    dates = (datetime.date, datetime.time)  # a datetime is a date
    return row | {name: value.isoformat() if isinstance(value, dates) else value for name, value in own.items()}


def _kinds(name: str, value: Any, format: str) -> set[str]:
    if name in _TURNS.get(format, ()):
        return {key for turn in value for key in turn}
    if value is None:
        return set()
    as_json(value, f"a column {name!r}")
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return {"words"}
    kind = {str: "text", bool: "flag", int: "number", float: "measure"}.get(type(value), "json")
    return {"json" if kind == "number" and not -(2**63) <= value < 2**63 else kind}


def _alpaca(turns: _Turns) -> _Row:
    system = {m["role"]: m["content"] for m in turns if m["role"] == "system"}
    body = [m["content"] for m in turns if m["role"] != "system"]
    if len(body) != 2:
        raise DataError(f"has {len(body)} turns; alpaca holds one question and one answer")
    return {"instruction": body[0], "input": "", "output": body[1], **system}


def _sharegpt(turns: _Turns) -> _Row:
    return {"conversations": [part for turn in turns for part in _spoken(turn)]}


def _spoken(turn: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """One turn of ShareGPT, or two where an assistant says something and calls tools."""
    more = {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    calls = [
        {k: v for k, v in call.items() if k not in ("type", "function")} | call["function"]
        for call in parse_calls(turn.get("tool_calls"))
    ]
    if turn["content"] or not calls:
        yield {"from": _SPEAKERS[turn["role"]], "value": turn["content"], **more}
        more = {}
    if calls:
        yield {"from": "function_call", "value": as_json(calls if len(calls) > 1 else calls[0], "a tool call"), **more}


def _chatml(turns: _Turns) -> _Row:
    for turn in turns:
        if found := [mark for mark in ("<|im_start|>", "<|im_end|>") if mark in turn["content"]]:
            raise DataError(f"has {found[0]} inside of a {turn['role']} turn, where chatml would end that turn")
    return {"text": "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in turns)}


def _messages(turns: _Turns) -> _Row:
    return {"messages": [_opened(turn) for turn in turns]}


def _prompt_completion(turns: _Turns) -> _Row:
    return {"prompt": [_opened(turn) for turn in turns[:-1]], "completion": [_opened(turns[-1])]}


def _opened(turn: Mapping[str, str]) -> _Row:
    return {key: parse_calls(value) if key == "tool_calls" else value for key, value in turn.items()}


def _write_jsonl(path: Path, rows: Iterator[_Row], columns: _Kinds, format: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_csv(path: Path, rows: Iterator[_Row], columns: _Kinds, format: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")  # a bare \r would go unquoted otherwise
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(name) for name in columns)
            writer.writerow([as_json(v, "a cell") if isinstance(v, list | tuple | Mapping) else v for v in cells])


def _write_parquet(path: Path, rows: Iterator[_Row], columns: _Kinds, format: str) -> None:
    import pyarrow
    import pyarrow.parquet

    plain = {
        "text": pyarrow.string(),
        "flag": pyarrow.bool_(),
        "number": pyarrow.int64(),
        "measure": pyarrow.float64(),
        "words": pyarrow.list_(pyarrow.string()),
    }
    types = {}
    for name, kinds in columns.items():
        if name in _TURNS.get(format, ()):
            types[name] = pyarrow.list_(
                pyarrow.struct([(key, pyarrow.string()) for key in sorted(kinds, reverse=True)])
            )
        else:
            types[name] = plain.get("".join(kinds) or "text")  # None: of several types, or nested
    schema = pyarrow.schema([(name, kind or pyarrow.string()) for name, kind in types.items()])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(rows):
            flat = [{name: _flat(row.get(name), kind is None) for name, kind in types.items()} for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(flat, schema=schema))


def _flat(value: Any, as_text: bool) -> Any:
    """A value as its Arrow column holds it: JSON text where the column is of no one type, and inside of turns."""
    if as_text:
        return None if value is None else as_json(value, "a column")
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [{key: v if isinstance(v, str) else as_json(v, key) for key, v in turn.items()} for turn in value]
    return value


def _batches(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


_WRITERS: dict[str, Callable[[_Turns], _Row]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "chatml": _chatml,
    "messages": _messages,
    "prompt-completion": _prompt_completion,
}

_FILES: dict[str, Callable[[Path, Iterator[_Row], _Kinds, str], None]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
