"""What a training run measured, step by step: written to `history.csv` as it trains, read back, shown side by side.

Knows files and numbers; how a curve looks is told by `plots`, what it means by `diagnosis`.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from ftkit import tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitError, FtkitWarning, MissingArtifact
from ftkit.files import write_text
from ftkit.runs import Run
from ftkit.training import checkpoints
from ftkit.training.diagnosis import Diagnosis, diagnose


@dataclass(frozen=True)
class HistoryPoint:
    """One row of `history.csv`. A point of training has `loss`, a point of validation has `val_loss`.

    `applied` counts the updates so far that changed the weights: in fp16 a step whose gradient overflows is skipped.
    """

    step: int
    loss: float | None = None
    val_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    memory_gib: float | None = None
    applied: int | None = None


COLUMNS = tuple(spec.name for spec in fields(HistoryPoint))

_FIRST_FORMAT = 8  # columns that a history had before `applied` was counted
_WHOLE = {"step", "tokens", "applied"}


@tables.shown
@dataclass(frozen=True)
class History:
    """The curve of one run and its cost: seconds of training, peak GiB, tokens read by the model.

    `stopped` is true where the run was interrupted on request and waits to go on.
    """

    points: tuple[HistoryPoint, ...] = field(repr=False)
    seconds: float
    peak_memory_gib: float
    tokens: int
    stopped: bool = False

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read `history.csv`; the cost is that of its last row.

        Raises:
            MissingArtifact: no such file.
            DataError: not a history; names the line.
        """
        path = Path(path)
        if not path.exists():
            raise MissingArtifact(f"{path} does not exist. training.train writes it.")
        points = read_points(path)
        if found := holes(points):
            warnings.warn(f"{path} has a hole: {'; '.join(found)}.", FtkitWarning, stacklevel=2)
        return cls.of(points)

    @classmethod
    def of(cls, points: list[HistoryPoint], peak_memory_gib: float | None = None, *, stopped: bool = False) -> Self:
        """Sum up points; the peak is the highest that any of them saw, unless it was measured better."""
        peak = max((p.memory_gib or 0.0 for p in points), default=0.0)
        seconds = max((p.seconds or 0.0 for p in points), default=0.0)
        tokens = max((p.tokens or 0 for p in points), default=0)
        return cls(tuple(points), seconds, peak_memory_gib or peak, tokens, stopped)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Training loss as `(step, loss)`, nats per trained token."""
        return [(p.step, p.loss) for p in self.points if p.loss is not None]

    @property
    def val_losses(self) -> list[tuple[int, float]]:
        """Validation loss as `(step, loss)`, nats per trained token."""
        return [(p.step, p.val_loss) for p in self.points if p.val_loss is not None]

    @property
    def steps(self) -> int:
        """Weight updates made."""
        return max((p.step for p in self.points), default=0)

    @property
    def applied_updates(self) -> int | None:
        """Updates that changed the weights; None for a history that did not count them."""
        return max((p.applied for p in self.points if p.applied is not None), default=None)

    @property
    def diagnosis(self) -> Diagnosis:
        """What the curve says and what to try; `training.diagnose(history, config)` also names settings."""
        return diagnose(self)

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last five points: one alone is noise."""
        last = [loss for _, loss in self.losses[-5:]]
        return sum(last) / len(last) if last else float("nan")

    @property
    def tokens_per_s(self) -> float:
        """Tokens read a second, prompt and answer alike."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def _parts(self) -> list[tables.Table]:
        first = self.losses[0][1] if self.losses else float("nan")
        applied = self.applied_updates
        skipped = f", {self.steps - applied} of them skipped" if applied is not None and applied < self.steps else ""
        waiting = "; stopped on request, the same call goes on from here" if self.stopped else ""
        facts = [
            ("updates", f"{self.steps}{skipped}{waiting}"),
            ("training loss", f"{first:.3f} → {self.final_loss:.3f}"),
            ("time", f"{self.seconds:.0f} s ({self.tokens_per_s:.0f} tokens/s)"),
            ("peak memory", f"{self.peak_memory_gib:.2f} GiB"),
        ]
        if self.val_losses:
            facts.append(("validation loss", f"{self.val_losses[-1][1]:.3f}"))
        facts.append(("reading", "; ".join(reading.title for reading in self.diagnosis.readings)))
        return [tables.Table((), facts)]


def read_points(path: Path, lost: list[str] | None = None) -> list[HistoryPoint]:
    """Rows of a history file; a last line that was cut by a kill is left out.

    With `lost` a line that cannot be read is noted there instead of raised.

    Raises:
        DataError: a file, or a line, that is no history.
    """
    problems: list[str] = []
    points = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    columns = lines[0].strip().split(",") if lines else []
    if tuple(columns) != COLUMNS[: max(len(columns), _FIRST_FORMAT)]:
        lines = []
        problems.append(f"{path} line 1: wanted the columns {','.join(COLUMNS)}.")
    for number, line in enumerate(lines[1:], 2):
        if line.endswith("\n"):
            try:
                points.append(_point(columns, line.strip("\r\n").split(",")))
            except (ValueError, TypeError) as error:
                problems.append(f"{path} line {number}: {line.strip()[:80]!r} is no point of a history ({error}).")
    if problems and lost is None:
        raise DataError(" ".join(problems[:3]))
    if lost is not None:
        lost.extend(problems)
    return points


def holes(points: Sequence[HistoryPoint], every: int | None = None, last: int = 0) -> list[str]:
    """What is missing or doubled among points of training; empty where the curve is whole.

    Args:
        points: in the order of the file.
        every: `logging_steps`; by default the usual distance of the points.
        last: the step up to which there must be points.
    """
    steps = [point.step for point in points if point.loss is not None]
    measured = [point.step for point in points if point.val_loss is not None]
    counted = (*Counter(steps).items(), *Counter(measured).items())
    doubled = {step for step, count in counted if count > 1}
    ordered = sorted(set(steps))
    gaps = Counter(b - a for a, b in pairwise(ordered[1:]))
    every = every or max(gaps, key=gaps.__getitem__, default=max([1, *steps]))
    found = [f"step {step} stands in it twice" for step in sorted(doubled)]
    if steps != sorted(steps):
        found.append("its steps are out of order")
    reached = max([last - last % every, *steps])
    for before, after in pairwise(sorted({0, *ordered, reached})):
        if after - before > every or (after == reached and after not in steps):
            found.append(f"nothing between the steps {before} and {after}")
    return found


def write_points(path: Path, points: list[HistoryPoint]) -> None:
    """Write a history file anew, atomically."""
    write_text(path, ",".join(COLUMNS) + "\n" + "".join(map(as_line, points)))


def as_line(point: HistoryPoint) -> str:
    """One line of `history.csv`; what was not measured stays empty."""
    return ",".join(_cell(getattr(point, name)) for name in COLUMNS) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _point(columns: list[str], cells: list[str]) -> HistoryPoint:
    values: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=True):
        if cell:
            values[name] = int(cell) if name in _WHOLE else float(cell)
    return HistoryPoint(**values)


@dataclass(frozen=True)
class RunRow:
    """One run: its state in words, its curve so far, its settings, or what is wrong with its files."""

    name: str
    state: str
    history: History | None = None
    config: TrainConfig | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run folder; damaged files become the row's state instead of an error."""
        run = Run(path)
        try:
            config = TrainConfig.load(run / "config.yaml")
            history = History.load(run / "history.csv")
        except (ConfigError, DataError, UnicodeDecodeError, OSError) as error:
            return cls(path.name, f"cannot be read: {str(error).splitlines()[0]}")
        return cls(path.name, _state(run, history), history, config)


@tables.shown
@dataclass(frozen=True)
class RunsTable:
    """Runs, newest first. Shows itself as a table."""

    rows: tuple[RunRow, ...]

    @classmethod
    def of(cls, root: str | Path, most: int = 12) -> Self:
        """The newest runs below `root` that a training began."""
        started = [path for path in Path(root).glob("*/history.csv") if (path.parent / "config.yaml").exists()]
        started.sort(key=lambda path: (path.stat().st_mtime, path.parent.name), reverse=True)
        return cls(tuple(RunRow.read(path.parent) for path in started[:most]))

    @property
    def differing(self) -> tuple[str, ...]:
        """Settings in which at least two of the readable runs differ."""
        configs = [row.config for row in self.rows if row.config is not None]
        return tuple(s.name for s in fields(TrainConfig) if len({getattr(c, s.name) for c in configs}) > 1)

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings, in order."""
        return ("run", "state", "training loss", "validation loss", "time", *self.differing)

    def cells(self, row: RunRow) -> list[str]:
        """What stands in a row, as text."""
        if row.history is None or row.config is None:
            return [row.name, row.state, *[""] * (len(self.columns) - 2)]
        seconds = row.history.seconds
        loss = f"{row.history.final_loss:.3f}" if row.history.losses else ""
        measured = f"{row.history.val_losses[-1][1]:.3f}" if row.history.val_losses else ""
        time = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
        return [row.name, row.state, loss, measured, time, *(_setting(row.config, name) for name in self.differing)]

    def _parts(self) -> list[tables.Table | str]:
        if not self.rows:
            return ["No runs yet."]
        return [tables.Table(self.columns, [self.cells(row) for row in self.rows])]


def resumable_step(run: Run) -> int | None:
    """The update that the newest complete checkpoint of an unfinished run holds; None where nothing can be resumed."""
    if run.finished("train"):
        return None
    sealed = [place for place in checkpoints.all_in(run / "checkpoints") if checkpoints.mark(place)]
    return checkpoints.step_of(sealed[-1]) if sealed else None


def _state(run: Run, history: History) -> str:
    try:
        if run.finished("train"):
            return f"✓ finished, {history.steps} updates"
        step = resumable_step(run)
    except FtkitError as error:
        return str(error).splitlines()[0]
    return f"○ stopped, resumes at {step}" if step else f"○ unfinished at {history.steps}, no checkpoint"


def _setting(config: TrainConfig, name: str) -> str:
    value = getattr(config, name)
    if isinstance(value, tuple):
        return " ".join(module.removesuffix("_proj") for module in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
