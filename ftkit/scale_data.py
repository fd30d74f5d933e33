"""Near-duplicates beyond one machine: datatrove over shards of JSONL, with the words, 5-grams and bands of `similar`.

Four stages: a signature of every row; pairs that agree in a band; clusters of pairs; all rows but those that follow the
first of their cluster. Each is cut into tasks that run on several processes, under Slurm or under Ray, and a task that was
finished is not run again. Unlike `similar`, which compares every candidate exactly, datatrove takes agreement in one band
for proof: of pairs at Jaccard 0.7 it joins about 61 %, at 0.8 95 %, at 0.5 6 %.
While all texts fit one machine, `clean.near_duplicates` is faster as well as exact.
Folders are local or shared by all machines. Needs `pip install 'ftkit[scale]'`.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit import storage
from ftkit.errors import ConfigError, DataError, MissingExtra, StorageError
from ftkit.minhash import BANDS, ROWS
from ftkit.scale_shards import Plan, export_shards, make_plan
from ftkit.scale_steps import KeepFirst, Read, Words, Write
from ftkit.shingles import WORDS

__all__ = ["EXECUTORS", "ScaleReport", "deduplicate", "export_shards", "stages"]
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
    with storage.explained(work):
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
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
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
