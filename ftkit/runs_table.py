"""The runs below one folder side by side: how each ended, and only the settings in which they differ."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ftkit import checkpoints
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitError
from ftkit.history import History
from ftkit.runs import Run


@dataclass(frozen=True)
class RunRow:
    """One run: its state in words, its curve so far, its settings, or what is wrong with its files."""

    name: str
    path: Path
    state: str
    history: History | None
    config: TrainConfig | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run folder; damaged files become the row's state instead of an error."""
        run = Run(path)
        try:
            config = TrainConfig.load(run / "config.yaml")
            history = History.load(run / "history.csv")
            return cls(path.name, path, _state(run, history), history, config)
        except (ConfigError, DataError, UnicodeDecodeError, OSError) as error:
            return cls(path.name, path, f"cannot be read: {str(error).splitlines()[0]}", None, None)


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
        measured = row.history.val_losses
        loss = f"{row.history.final_loss:.3f}" if row.history.losses else ""
        return [
            row.name,
            row.state,
            loss,
            f"{measured[-1][1]:.3f}" if measured else "",
            _time(row.history.seconds),
            *(_setting(getattr(row.config, name)) for name in self.differing),
        ]

    def __str__(self) -> str:
        table = [list(self.columns), *(self.cells(row) for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip() for cells in table
        )

    def _repr_html_(self) -> str:
        if not self.rows:
            return "<p>No runs yet.</p>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in self.cells(row)) + "</tr>" for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def resumable_step(run: Run) -> int | None:
    """The update that the newest complete checkpoint of an unfinished run holds; None where there is nothing to resume."""
    if run.finished("train"):
        return None
    sealed = [place for place in checkpoints.all_in(run / "checkpoints") if (place / checkpoints.MARK).exists()]
    return checkpoints.step_of(sealed[-1]) if sealed else None


def chosen(rows: Sequence[RunRow], names: Sequence[str]) -> list[RunRow]:
    """The readable rows of these names, in the table's order."""
    return [row for row in rows if row.name in names and row.history is not None]


def _state(run: Run, history: History) -> str:
    try:
        if run.finished("train"):
            return f"✓ finished, {history.steps} updates"
        step = resumable_step(run)
    except FtkitError as error:
        return str(error).splitlines()[0]
    return f"○ stopped, resumes at {step}" if step else f"○ unfinished at {history.steps}, no checkpoint"


def _setting(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(name.removesuffix("_proj") for name in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
