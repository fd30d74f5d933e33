"""Near-duplicates beyond one machine: datatrove over shards of JSONL, with the words, 5-grams and bands of `similar`.

Four stages: a signature of every row; pairs that agree in a band; clusters of pairs; all rows but those that follow the
first of their cluster. Each is cut into tasks that run on several processes, under Slurm or under Ray, and a task that was
finished is not run again. Unlike `similar`, which compares every candidate exactly, datatrove takes agreement in one band
for proof: of pairs at Jaccard 0.7 it joins about 61 %, at 0.8 95 %, at 0.5 6 %.
While all texts fit one machine, `cleaning.near_duplicates` is faster as well as exact.
Folders are local or shared by all machines. Needs `pip install 'ftkit[scale]'`.
"""

import filecmp
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit import data, files
from ftkit.data import BANDS, ROWS, WORDS, detect_format, plain, text_of, to_messages, used_columns, words
from ftkit.errors import ConfigError, DataError, MissingExtra, StorageError


@dataclass(frozen=True)
class Read:
    """First step: the rows of this task's shards as datatrove's documents, the row itself in their metadata.

    datatrove's own reader passes over broken lines in silence, and over the rest of a file behind a byte that is no UTF-8.
    """

    shards: tuple[str, ...] = field(repr=False)
    mapping: Mapping[str, str] | None
    broken: str | None = None  # folder that gets a list of the rows that cannot be used

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield documents; neighbouring shards belong to one task, so that tasks keep the order of the rows."""
        from datatrove.data import Document

        notes: list[str] = []
        for i in block(len(self.shards), rank, world_size):
            path = Path(self.shards[i])
            for place, given in data.read(path):
                try:
                    row = converted(given, self.mapping)
                except DataError as error:
                    notes.append(f"{path.name} {place} {' '.join(str(error).split())}\n")
                else:
                    yield Document(text=text_of(row["messages"]), id=f"{path.name} {place}", metadata={"row": row})
        if self.broken:
            files.write_text(Path(self.broken) / f"{rank:05d}.txt", "".join(notes))


@dataclass(frozen=True)
class Words:
    """Stands in for datatrove's word tokenizers: the words of `shingles`, so that both make the same 5-grams."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words; fewer than 5 are filled up with empty ones, which makes a short text one shingle."""
        found = words(text)
        return found + [""] * (WORDS - len(found)) if 0 < len(found) < WORDS else found


@dataclass(frozen=True)
class KeepFirst:
    """Marks all rows of a cluster but its first for removal; datatrove would keep the root of its union-find.

    Clusters are numbered in the order of their first rows, so a number that is not higher than all before it was there.
    """

    clusters: str

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write `<task>.remove` (positions) for each `<task>.clusters` (position and cluster); 32-bit, little-endian."""
        import numpy as np

        highest = -1
        for path in sorted(Path(self.clusters).glob("*.clusters")):
            position, cluster = np.fromfile(path, dtype="<u4").reshape(-1, 2).astype(np.int64).T
            before = np.maximum.accumulate(np.concatenate([[highest], cluster]))
            position[cluster <= before[:-1]].astype("<u4").tofile(path.with_suffix(".remove"))
            highest = int(before[-1])


@dataclass(frozen=True)
class Write:
    """Last step: one JSONL file of `messages` and the other columns a task."""

    folder: str

    def __call__(self, documents: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write the rows of all documents."""
        write_rows(Path(self.folder) / f"{rank:05d}.jsonl", (document.metadata["row"] for document in documents))


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
    with files.disk_errors_explained(path):
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
    for place, row in itertools.islice(data.read(path), _LOOKED_AT):
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
        files.write_json(Path(self.work) / "run.json", asdict(self))
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
    """Look at the folders and say what is to be done; writes nothing. Errors: see `cleaning.deduplicate`."""
    source, output = (Path(folder).expanduser().absolute() for folder in (input_folder, output_folder))
    work = Path(work_folder).expanduser().absolute() if work_folder else output.with_name(f"{output.name}.work")
    if not source.is_dir():
        raise DataError(
            f"{source} {'is a file' if source.exists() else 'does not exist'}; wanted a folder of JSONL shards. "
            "`cleaning.export_shards` writes one from a Dataset."
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


EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}

_STAGES = ("signatures", "pairs", "clusters", "filter")

_OURS = {"self", "pipeline", "tasks", "workers", "logging_dir", "depends", "skip_completed"}

_BUFFERED = {"lines_to_buffer": 1_000}

_TOO_FEW = "workers={} is below 1 (tasks that run at a time)."

_MISSING = "Cleaning beyond one machine needs datatrove ({}). Run: pip install 'ftkit[scale]'"

_DRIVER = "import json, sys; from ftkit import scale_data; scale_data._drive(json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class ScaleReport:
    """What a deduplication did; `rows_in == rows_kept + duplicates + broken`."""

    rows_in: int
    rows_kept: int
    duplicates: int
    broken: int  # rows that are no chat with an answer; `work_folder/broken` lists each with its reason
    seconds: float  # of this call: less where finished tasks were found
    files: tuple[Path, ...] = field(repr=False)
    log: Path = field(repr=False)

    def __str__(self) -> str:
        return (
            f"kept {self.rows_kept:,} of {self.rows_in:,} rows ({self.rows_kept / max(self.rows_in, 1):.1%}): "
            f"{self.duplicates:,} near-duplicates and {self.broken:,} broken rows left out, "
            f"{len(self.files)} files, {self.seconds:.1f} s"
        )


def deduplicate(
    input_folder: str | Path,
    output_folder: str | Path,
    *,
    workers: int = 2,
    tasks: int | None = None,
    work_folder: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
) -> ScaleReport:
    """Leave near-duplicates out of a folder of JSONL shards, on several processes; keeps the first row of each cluster.

    Runs in a process of its own, so that it neither depends on how the caller was started (notebook, script, pytest) nor
    prints; what datatrove says goes to `work_folder/datatrove.log`. Called again after an interruption, it goes on.
    datatrove waits for ever for a worker that the system killed for its memory: interrupt, and call with fewer workers.

    Args:
        input_folder: `*.jsonl` in any format that `data.load_examples` knows; read in the order of their names.
        output_folder: gets one file of `messages` a task, the rows in their old order.
        workers: processes at a time.
        tasks: pieces of work; by default one a shard, and never more.
        work_folder: signatures, logs and what is finished; by default `output_folder` with `.work` at its end.
        mapping: as in `data.load_examples`.

    Raises:
        DataError: no input folder, no JSONL in it, no row that can be read; or what stopped datatrove.
        StorageError: a folder that belongs to another run, or in which one is at work.
        MissingExtra: datatrove is not installed.
    """
    from filelock import FileLock, Timeout

    began = time.perf_counter()
    plan = make_plan(input_folder, output_folder, tasks, work_folder, mapping)
    if workers < 1:
        raise ConfigError(_TOO_FEW.format(workers))
    if find_spec("datatrove") is None:  # not imported here: it would take over this process's loguru
        raise MissingExtra(_MISSING.format("it is not installed"))
    work = Path(plan.work)
    with files.disk_errors_explained(work):
        work.mkdir(parents=True, exist_ok=True)
    arguments = {
        "input_folder": plan.input,
        "output_folder": plan.output,
        "work_folder": plan.work,
        "workers": workers,
        "tasks": tasks,
        "mapping": plan.mapping,
    }
    try:
        with FileLock(work / "lock", timeout=0):
            _in_own_process(arguments, work / "datatrove.log")
    except Timeout as error:
        raise StorageError(f"Another run is at work in {work}. Wait for it, or choose another work_folder.") from error
    return _report(plan, time.perf_counter() - began)


def stages(
    input_folder: str | Path,
    output_folder: str | Path,
    *,
    workers: int = 2,
    tasks: int | None = None,
    executor: str = "local",
    work_folder: str | Path | None = None,
    slurm: Mapping[str, Any] | None = None,
    ray: Mapping[str, Any] | None = None,
    mapping: Mapping[str, str] | None = None,
) -> list[Any]:
    """Build the four datatrove executors of `deduplicate` without running them; `stages(...)[-1].run()` runs all.

    Args:
        input_folder: as in `deduplicate`.
        output_folder: as in `deduplicate`.
        workers: tasks at a time.
        tasks: as in `deduplicate`.
        work_folder: as in `deduplicate`.
        mapping: as in `data.load_examples`.
        executor: "local", "slurm" or "ray". The last two want folders that all machines share, and ftkit on each.
        slurm: what SlurmPipelineExecutor takes; `time` and `partition` must be there:
            `{"time": "02:00:00", "partition": "cpu", "mem_per_cpu_gb": 4, "venv_path": "/shared/venv/bin/activate"}`.
        ray: what RayPipelineExecutor takes, such as `{"cpus_per_task": 1}`; call `ray.init()` before running.

    Raises:
        ConfigError: an unknown executor, an option that it does not know, or one that it lacks.
        DataError, StorageError, MissingExtra: see `deduplicate`.
    """
    given = {"slurm": slurm, "ray": ray}
    if unused := [name for name, value in given.items() if value is not None and name != executor]:
        raise ConfigError(f"{unused[0]}= is given, but executor={executor!r}. Set executor={unused[0]!r}.")
    options = dict(given.get(executor) or {})
    kind = _executor_kind(executor, workers, options)
    plan = make_plan(input_folder, output_folder, tasks, work_folder, mapping)
    plan.settle()
    built: list[Any] = []
    for name, (pipeline, count) in zip(_STAGES, _pipelines(plan), strict=True):
        common = {
            "tasks": count,
            "workers": min(workers, count),
            "logging_dir": f"{plan.work}/stages/{name}",
            "depends": built[-1] if built else None,
        }
        own = {"job_name": f"ftkit-{name}"} if executor == "slurm" else {}
        built.append(kind(pipeline, **common, **(own | options)))
    return built


def _executor_kind(executor: str, workers: int, options: Mapping[str, Any]) -> Any:
    """The executor's class, once it is sure to take these options."""
    if workers < 1:
        raise ConfigError(_TOO_FEW.format(workers))
    if executor not in EXECUTORS:
        raise ConfigError(f"executor={executor!r} is not one of {', '.join(EXECUTORS)}.")
    kind = getattr(_datatrove("executor"), EXECUTORS[executor])
    takes = {name: p for name, p in inspect.signature(kind).parameters.items() if name not in _OURS}
    if unknown := sorted(set(options) - set(takes)):
        raise ConfigError(f"{executor}={{{unknown[0]!r}: ...}}: no such option. It takes: {', '.join(takes)}.")
    if lacking := [name for name, p in takes.items() if p.default is p.empty and name not in options]:
        raise ConfigError(
            f"executor={executor!r} needs {executor}={{{', '.join(f'{name!r}: ...' for name in lacking)}}}."
        )
    return kind


def _datatrove(module: str) -> Any:
    try:
        return import_module(f"datatrove.{module}")
    except ImportError as error:
        raise MissingExtra(_MISSING.format(error)) from error


def _pipelines(plan: Plan) -> Iterator[tuple[list[Any], int]]:
    """The steps and the number of tasks of each stage."""
    dedup, config = _datatrove("pipeline.dedup.minhash"), _minhash_config()
    folders = [f"{plan.work}/{name}" for name in _STAGES[:3]]
    paths = tuple(f"{plan.input}/{name}" for name, _, _ in plan.shards)
    _datatrove("utils.word_tokenizers").WordTokenizer.register(Words)  # datatrove takes only its own kind
    signatures = dedup.MinhashDedupSignature(folders[0], config, language=Words())
    yield [Read(paths, plan.mapping, f"{plan.work}/broken"), signatures], plan.tasks
    yield [dedup.MinhashDedupBuckets(folders[0], folders[1], config=config, **_BUFFERED)], BANDS
    clusters = dedup.MinhashDedupCluster(folders[1], folders[2], config, save_cluster_id=True, **_BUFFERED)
    yield [clusters, KeepFirst(folders[2])], 1
    kept = dedup.MinhashDedupFilter(folders[2], **_BUFFERED)
    yield [Read(paths, plan.mapping), kept, Write(plan.output)], plan.tasks


def _minhash_config() -> Any:
    """Our 5-grams, bands and rows; SHA-1 because datatrove's xxhash fails with xxhash 4."""
    norms = _datatrove("utils.text").TextNormConfig
    nothing = norms(**dict.fromkeys(inspect.signature(norms).parameters, False))  # `Words` normalises as `similar` does
    hashes = _datatrove("utils.hashing").HashConfig(precision=64, hash_fc="sha1")
    return _datatrove("pipeline.dedup.minhash").MinhashConfig(
        n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS, norm_config=nothing, hash_config=hashes
    )


def _in_own_process(arguments: dict[str, Any], log: Path) -> None:
    """Run the stages in a new process, which ends with this one, however that ends."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", _DRIVER, json.dumps(arguments)]
    with (
        log.open("ab") as sink,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, env=env, start_new_session=True
        ) as driver,
    ):
        driver.wait()
    if driver.returncode:
        said = log.read_text("utf-8", errors="replace").strip().splitlines()
        raise DataError(
            f"datatrove stopped: {said[-1] if said else f'exit code {driver.returncode}'}\n{log} says more. "
            "Once the cause is gone, the same call goes on from there."
        )


def _drive(arguments: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_caller, daemon=True).start()
    for stage in stages(**arguments):
        stage.run()


def _end_with_caller() -> None:
    os.read(0, 1)  # returns when the caller closes the pipe, and also when it is killed
    os.killpg(0, signal.SIGKILL)


def _report(plan: Plan, seconds: float) -> ScaleReport:
    work = Path(plan.work)
    counts = [json.loads(path.read_text())[0]["stats"] for path in work.glob("stages/filter/stats/*.json")]
    rows, kept, gone = (sum(c.get(name, 0) for c in counts) for name in ("total", "forwarded", "dropped"))
    broken = sum(path.read_bytes().count(b"\n") for path in work.glob("broken/*.txt"))
    files = tuple(path for path in sorted(Path(plan.output).glob("*.jsonl")) if path.stat().st_size)
    return ScaleReport(rows + broken, kept, gone, broken, seconds, files, work / "datatrove.log")
