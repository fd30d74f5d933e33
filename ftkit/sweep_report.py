"""What a search found: its trials, the best settings, and how far they are from the ones that it started with."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError
from ftkit.history import History
from ftkit.runs import Run
from ftkit.space import Axis, shown

STATES = ("finished", "pruned", "diverged", "failed")
_STEP = "trial"  # the mark in a trial's run.json; written last


@dataclass(frozen=True)
class Trial:
    """One short run: its settings, how it ended, and its last validation loss (None where it is not a number)."""

    number: int
    settings: dict[str, Any]
    state: str
    value: float | None
    seconds: float
    reason: str
    run: Run

    @classmethod
    def read(cls, number: int, run: Run) -> Self | None:
        """The trial in a run folder; None where it has not ended.

        Raises:
            DataError: the folder's record is damaged.
        """
        if not run.finished(_STEP):
            return None
        try:
            facts = run.facts[_STEP]
            settings = {n: tuple(v) if isinstance(v, list) else v for n, v in facts["settings"].items()}
            return cls(number, settings, facts["state"], facts["value"], facts["seconds"], facts["reason"], run)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{run.path}/run.json is no record of a trial ({error!r}). Delete the folder to run it again."
            ) from error

    def keep(self) -> None:
        """Mark the trial's run folder as ended."""
        self.run.finish(
            _STEP, settings=self.settings, state=self.state, value=self.value, seconds=self.seconds, reason=self.reason
        )

    @property
    def history(self) -> History:
        """Its curve, empty where it failed before the first update."""
        path = self.run / "history.csv"
        return History.load(path) if path.exists() else History((), 0.0, 0.0, 0)

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.settings.items())


@dataclass(frozen=True)
class SweepReport:
    """All trials so far of one search; shows itself as a table, best first.

    The value of a trial is its last validation loss, nats a trained token: lower is better.
    """

    config: TrainConfig
    space: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    run: Run

    @classmethod
    def open(cls, run: Run) -> Self:
        """Read what a search left in `run`, finished or not.

        Raises:
            MissingArtifact: no search began there.
            DataError: its record is damaged.
        """
        path = run.require("sweep.json")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            config = TrainConfig(**facts["config"])
            space = tuple(Axis.from_facts(field, values) for field, values in facts["space"].items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}). Delete {run.path} and search again.") from error
        return cls(config, space, ended_in(run), run)

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Finished trials first, by value; then the others, in their order."""
        last = len(STATES)
        return tuple(
            sorted(
                self.trials,
                key=lambda t: (
                    STATES.index(t.state) if t.state in STATES else last,
                    math.inf if t.value is None else t.value,
                    t.number,
                ),
            )
        )

    @property
    def best_trial(self) -> Trial:
        """The finished trial with the lowest validation loss.

        Raises:
            ConfigError: no trial finished; says how they ended.
        """
        if not self.trials or self.ranked[0].state != "finished":
            ends = "; ".join(
                f"trial {t.number} {t.state}" + (f" ({t.reason})" if t.reason else "") for t in self.trials
            )
            raise ConfigError(
                f"No trial finished: {ends or 'none was run'}. Narrow the space, or start from other settings."
            )
        return self.ranked[0]

    @property
    def best(self) -> TrainConfig:
        """The settings of the best trial, with all that was not searched."""
        return self.config.replace(**self.best_trial.settings)

    @property
    def start(self) -> Trial | None:
        """The trial of the settings that the search started with, where they lie in the space."""
        return next((t for t in self.trials if all(getattr(self.config, n) == v for n, v in t.settings.items())), None)

    @property
    def seconds(self) -> float:
        """Training time of all trials."""
        return sum(trial.seconds for trial in self.trials)

    def histories(self) -> dict[str, History]:
        """The curve of each trial that has one, under its settings, for `run_plots.compare_runs`."""
        return {trial.label: history for trial in self.trials if (history := trial.history).points}

    def verdict(self) -> str:
        """One plain sentence."""
        if all(trial.state != "finished" for trial in self.trials):
            return f"None of {len(self.trials)} trials finished."
        best, start = self.best_trial, self.start
        assert best.value is not None
        said = f"Best of {len(self.trials)} trials: {best.label}, validation loss {best.value:.3f} nats a token"
        if start is None or start.value is None:
            return f"{said}."
        if start is best:
            return f"{said}; these are the settings that it started with."
        return f"{said}; the settings that it started with reached {start.value:.3f}."

    def _cells(self) -> list[list[str]]:
        names = [axis.field for axis in self.space]
        head = ["trial", *names, "validation loss", "state", "seconds"]
        lines = [
            [
                str(t.number),
                *(shown(t.settings[n]) for n in names),
                "" if t.value is None else f"{t.value:.3f}",
                t.state + (f": {t.reason}" if t.reason else ""),
                f"{t.seconds:.0f}",
            ]
            for t in self.ranked
        ]
        return [head, *lines]

    def __str__(self) -> str:
        table = self._cells()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n".join([*lines, self.verdict()])

    def _repr_html_(self) -> str:
        head, *lines = self._cells()
        first = next((t for t in self.ranked if t.state == "finished"), None)
        rows = "".join(_row(line, bold=first is trial) for line, trial in zip(lines, self.ranked, strict=True))
        titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        return f"<table><tr>{titles}</tr>{rows}</table><p>{html.escape(self.verdict())}</p>"


def ended_in(run: Run) -> tuple[Trial, ...]:
    """The trials below a search's folder that have ended, in their order; damaged records are named, not skipped."""
    folders = sorted(path for path in (run / "trials").glob("*") if path.name.isdigit())
    return tuple(trial for path in folders if (trial := Trial.read(int(path.name), Run(path))) is not None)


def folder_of(run: Run, number: int) -> Path:
    """Where a trial's run stands."""
    return run / f"trials/{number:03d}"


def _row(cells: Sequence[str], *, bold: bool) -> str:
    tag = "b" if bold else "span"
    return "<tr>" + "".join(f"<td><{tag}>{html.escape(cell)}</{tag}></td>" for cell in cells) + "</tr>"
