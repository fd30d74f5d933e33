"""Folders of shards: written from a Dataset, listed in their order, read row by row, and claimed by one run of `scale_data`."""

import filecmp
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftkit import readers, storage
from ftkit.errors import ConfigError, DataError, StorageError
from ftkit.formats import detect_format, plain, to_messages, used_columns

_BATCH = 1_000
_LOOKED_AT = 100  # rows of the first shard; if none of them can be read, none will be


def export_shards(examples: Any, folder: str | Path, *, shards: int = 4) -> list[Path]:
    """Write a Dataset as JSONL files of nearly equal length, in order; a file that says the same already is not touched.

    Raises:
        ConfigError: fewer than one shard.
        DataError: no rows.
        StorageError: the folder holds other JSONL files, which would be read together with these.
    """
    folder, total = Path(folder).expanduser(), len(examples)
    if shards < 1:
        raise ConfigError(f"shards={shards} is below 1 (files to write).")
    if total == 0:
        raise DataError("The dataset has no rows to export.")
    shards = min(shards, total)
    paths = [folder / f"shard-{i:05d}.jsonl" for i in range(shards)]
    if others := sorted({p.name for p in folder.glob("*.jsonl")} - {p.name for p in paths}):
        raise StorageError(f"{folder} holds other JSONL files: {', '.join(others[:5])}. Choose another folder.")
    for i, path in enumerate(paths):
        write_rows(path, _rows(examples, block(total, i, shards)))
    return paths


def _rows(examples: Any, span: range) -> Iterator[dict[str, Any]]:
    for start in range(span.start, span.stop, _BATCH):
        columns = examples[start : min(start + _BATCH, span.stop)]
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            yield row | {"messages": [plain(m) for m in row["messages"]]}


def block(size: int, part: int, parts: int) -> range:
    """The positions of one of `parts` neighbouring blocks of `size` things."""
    return range(part * size // parts, (part + 1) * size // parts)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines as they come; the file appears whole or not at all, and stays untouched if it says the same."""
    part = path.with_name(f".{path.name}.part")
    with storage.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.writelines(map(_line, rows))
        if path.exists() and filecmp.cmp(part, path, shallow=False):
            part.unlink()
        else:
            part.replace(path)


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in a column of the caller's: only the escaped form can be written
        return json.dumps(row, default=str).encode() + b"\n"


def refuse_unreadable(path: Path, mapping: Mapping[str, str] | None) -> None:
    """Stop over a shard whose first rows are all unusable, before hours of work go into it.

    Raises:
        DataError: what is wrong with the first of them.
    """
    first = ""
    for place, row in itertools.islice(readers.read(path), _LOOKED_AT):
        try:
            converted(row, mapping)
        except DataError as error:
            first = first or f"{place}: {error}"
        else:
            return
    raise DataError(f"{path}: none of its first rows can be used. {first}")


def converted(row: Any, mapping: Mapping[str, str] | None) -> dict[str, Any]:
    """A row of any known format as `messages` and its other columns.

    Raises:
        DataError: what is wrong with it.
    """
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, Mapping):
        raise DataError(f"is {type(row).__name__} ({str(row)[:40]!r}), wanted an object with columns")
    format = None if mapping else detect_format(row)
    used = set(mapping.values()) if mapping else used_columns(format or "messages")
    return {**{k: v for k, v in row.items() if k not in used}, "messages": to_messages(row, format, mapping)}


@dataclass(frozen=True)
class Plan:
    """One deduplication: which shards become what, in how many tasks. Tells whether a folder belongs to it."""

    input: str
    output: str
    work: str
    shards: list[list[str | int]]  # name, bytes, time of the last change in ns
    tasks: int
    mapping: dict[str, str] | None

    def check(self) -> None:
        """Refuse folders that another run has used."""
        record = Path(self.work) / "run.json"
        if record.exists():
            before, now = json.loads(record.read_text("utf-8")), asdict(self)
            if changed := [name for name in now if now[name] != before.get(name)]:
                raise StorageError(
                    f"{self.work} belongs to another run: {', '.join(changed)} differ. Choose another "
                    f"work_folder and output_folder, or delete {self.work} and {self.output} to start over."
                )
        elif there := sorted(p.name for p in Path(self.output).glob("*") if not p.name.startswith(".")):
            raise StorageError(
                f"{self.output} is not empty ({', '.join(there[:5])}), and {self.work} knows of no run that wrote it. "
                "Choose another output_folder."
            )

    def settle(self) -> None:
        """Take the folders; a task whose output was deleted counts as unfinished."""
        storage.write_json(Path(self.work) / "run.json", asdict(self))
        for task in range(self.tasks):
            if not (Path(self.output) / f"{task:05d}.jsonl").exists():
                (Path(self.work) / "stages" / "filter" / "completions" / f"{task:05d}").unlink(missing_ok=True)


def make_plan(
    input_folder: str | Path,
    output_folder: str | Path,
    tasks: int | None,
    work_folder: str | Path | None,
    mapping: Mapping[str, str] | None,
) -> Plan:
    """Look at the folders and say what is to be done; writes nothing. Errors: see `scale_data.deduplicate`."""
    source, output = (Path(folder).expanduser().absolute() for folder in (input_folder, output_folder))
    work = Path(work_folder).expanduser().absolute() if work_folder else output.with_name(f"{output.name}.work")
    if not source.is_dir():
        raise DataError(
            f"{source} {'is a file' if source.exists() else 'does not exist'}; wanted a folder of JSONL shards. "
            "`scale_data.export_shards` writes one from a Dataset."
        )
    if len({source, output, work}) < 3:
        raise ConfigError(f"Input, output and work folder must be three, but they are {source}, {output} and {work}.")
    if tasks is not None and tasks < 1:
        raise ConfigError(f"tasks={tasks} is below 1 (pieces of work).")
    filled = [path for path in sorted(source.glob("*.jsonl")) if path.stat().st_size]
    if not filled:
        there = sorted(p.name for p in source.iterdir())
        raise DataError(f"{source} holds no filled *.jsonl file. It holds: {', '.join(there[:8]) or 'nothing'}.")
    refuse_unreadable(filled[0], mapping)
    shards: list[list[str | int]] = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in filled]
    tasks = min(tasks or len(shards), len(shards))
    plan = Plan(str(source), str(output), str(work), shards, tasks, dict(mapping) if mapping else None)
    plan.check()
    return plan
