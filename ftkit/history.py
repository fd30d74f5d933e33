"""What a training run measured, step by step: written while it trains, read back from `history.csv`."""

import csv
import html
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ftkit.diagnosis import Diagnosis, diagnose
from ftkit.errors import DataError, MissingArtifact
from ftkit.storage import write_text


@dataclass(frozen=True)
class Point:
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


COLUMNS = tuple(spec.name for spec in fields(Point))
_FIRST_FORMAT = 8  # columns that a history had before `applied` was counted
_WHOLE = {"step", "tokens", "applied"}


@dataclass(frozen=True)
class History:
    """The curve of one run and its cost: seconds of training, peak GiB, tokens read by the model.

    `stopped` is true where the run was interrupted on request and waits to go on.
    """

    points: tuple[Point, ...] = field(repr=False)
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
            raise MissingArtifact(f"{path} does not exist. train.train writes it.")
        points = read_points(path)
        return cls.of(points)

    @classmethod
    def of(cls, points: list[Point], peak_memory_gib: float | None = None, *, stopped: bool = False) -> Self:
        """Sum up points; the peak is the highest that any of them saw, unless it was measured better."""
        peak = max((p.memory_gib or 0.0 for p in points), default=0.0)
        seconds, tokens = (max((getattr(p, n) or 0 for p in points), default=0) for n in ("seconds", "tokens"))
        return cls(tuple(points), float(seconds), peak_memory_gib or peak, int(tokens), stopped)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Training loss as `(step, loss)`, nats a trained token."""
        return [(p.step, p.loss) for p in self.points if p.loss is not None]

    @property
    def val_losses(self) -> list[tuple[int, float]]:
        """Validation loss as `(step, loss)`, nats a trained token."""
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
        """What the curve says, with evidence and what to try; `diagnosis.diagnose(history, config)` also names settings."""
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

    def _facts(self) -> dict[str, str]:
        first = self.losses[0][1] if self.losses else float("nan")
        applied = self.applied_updates
        skipped = f", {self.steps - applied} of them skipped" if applied is not None and applied < self.steps else ""
        waiting = "; stopped on request, the same call goes on from here" if self.stopped else ""
        facts = {
            "updates": f"{self.steps}{skipped}{waiting}",
            "training loss": f"{first:.3f} → {self.final_loss:.3f} nats a token",
            "time": f"{self.seconds:.0f} s ({self.tokens_per_s:.0f} tokens/s)",
            "peak memory": f"{self.peak_memory_gib:.2f} GiB",
        }
        if self.val_losses:
            facts["validation loss"] = f"{self.val_losses[-1][1]:.3f} nats a token"
        facts["reading"] = "; ".join(reading.title for reading in self.diagnosis.readings)
        return facts

    def __str__(self) -> str:
        return "\n".join(f"{name:>16}  {value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{n}</th><td>{html.escape(v)}</td></tr>" for n, v in self._facts().items())
        return f"<table>{rows}</table>"


def read_points(path: Path) -> list[Point]:
    """Rows of a history file; a last line that was cut by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    columns = lines[0].strip().split(",") if lines else []
    if tuple(columns) != COLUMNS[: max(len(columns), _FIRST_FORMAT)]:
        raise DataError(f"{path} line 1: wanted the columns {','.join(COLUMNS)}.")
    whole = [line for line in lines[1:] if line.endswith("\n")]
    return [_point(path, number, columns, cells) for number, cells in enumerate(csv.reader(whole), 2)]


def write_points(path: Path, points: list[Point]) -> None:
    """Write a history file anew, atomically."""
    write_text(path, ",".join(COLUMNS) + "\n" + "".join(as_line(p) for p in points))


def as_line(point: Point) -> str:
    """One line of `history.csv`; what was not measured stays empty."""
    return (
        ",".join(
            "" if (v := getattr(point, n)) is None else f"{v:.6g}" if isinstance(v, float) else str(v) for n in COLUMNS
        )
        + "\n"
    )


def _point(path: Path, number: int, columns: list[str], cells: list[str]) -> Point:
    try:
        values: dict[str, Any] = {
            n: (int if n in _WHOLE else float)(c) for n, c in zip(columns, cells, strict=True) if c
        }
        return Point(**values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} line {number}: {','.join(cells)!r} is no point of a history ({error}).") from error
