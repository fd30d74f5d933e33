"""A small search over settings: short real runs, the poor ones cut off early, every one a folder that survives a kill.

Optuna draws, prunes and keeps the record, in `search.journal` beside the run folders. A trial that a kill left running
is drawn again with its settings and goes on in its folder. Each trial loads the base model anew: LoRA is put into it in
place, and taking it out again leaves Unsloth's and Accelerate's changes behind.
"""

import contextlib
import dataclasses
import gc
import json
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ftkit import data, models, runs, tables
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import ConfigError, DataError, MissingExtra, PreflightError, TrainingError
from ftkit.hardware import release_memory
from ftkit.runs import Run
from ftkit.tables import Table
from ftkit.training import History, HistoryPoint, all_in, train
from ftkit.training import remove as remove_checkpoint
from ftkit.tuning.space import Axis, Space, axes, combinations, short

STATES = ("finished", "pruned", "diverged", "failed")
_JOURNAL = "search.journal"
_RANDOM_FIRST = 4  # trials before the sampler models what it has seen: fewer is guessing
_REDRAWS = 100  # draws that may turn out to be settings which were tried before


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

    @property
    def history(self) -> History:
        """Its curve, empty where it failed before the first update."""
        return _curve(self.run)

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ", ".join(f"{name} {short(value)}" for name, value in self.settings.items())


@tables.shown
@dataclass(frozen=True)
class SearchReport:
    """All trials so far of one search; shows itself as a table, best first.

    The value of a trial is its last validation loss, per trained token: lower is better.
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
        run.require(_JOURNAL)
        study = _study(run)
        try:
            setup = study.user_attrs["setup"]
            config = TrainConfig(**setup["config"])
            given = {field: tuple(ends) for field, ends in setup["ranges"].items()} | setup["choices"]
            space = axes({field: given[field] for field in setup["order"]}, config)
            trials = []
            for trial in study.trials:  # one cut off by a kill did not end by itself, nor did a repeated draw
                if trial.state.is_finished() and "ended" in trial.user_attrs:
                    folder, ended = trial.user_attrs["folder"], trial.user_attrs["ended"]
                    settings = _settings(trial, space)
                    trials.append(Trial(int(folder), settings, run=Run(run / "trials" / folder), **ended))
        except (KeyError, TypeError, ConfigError) as error:
            raise DataError(f"{run / _JOURNAL} is damaged ({error!r}). Delete {run.path} and search again.") from error
        return cls(config, space, tuple(sorted(trials, key=lambda trial: trial.number)), run)

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Finished trials first, by value; then the others, state by state, in their order."""

        def rank(trial: Trial) -> tuple[int, float, int]:
            return STATES.index(trial.state), math.inf if trial.value is None else trial.value, trial.number

        return tuple(sorted(self.trials, key=rank))

    @property
    def best_trial(self) -> Trial:
        """The finished trial with the lowest validation loss; where none is, a ConfigError says how they ended."""
        if self.trials and self.ranked[0].state == "finished":
            return self.ranked[0]
        ends = [f"trial {t.number} {t.state}" + (f" ({t.reason})" if t.reason else "") for t in self.trials]
        said = "; ".join(ends) or "none was run"
        raise ConfigError(f"No trial finished: {said}. Narrow the space, or start from other settings.")

    @property
    def best(self) -> TrainConfig:
        """The settings of the best trial, with all that was not searched."""
        return self.config.replace(**self.best_trial.settings)

    @property
    def start(self) -> Trial | None:
        """The trial of the settings that the search started with, where they lie in the space."""
        here = {axis.field: getattr(self.config, axis.field) for axis in self.space}
        return next((trial for trial in self.trials if trial.settings == here), None)

    def histories(self) -> dict[str, History]:
        """The curve of each trial that has one, under its settings, for `training.plot_runs`."""
        return {trial.label: history for trial in self.trials if (history := trial.history).points}

    def verdict(self) -> str:
        """One plain sentence."""
        if all(trial.state != "finished" for trial in self.trials):
            return f"None of {len(self.trials)} trials finished."
        best, start = self.best_trial, self.start
        said = f"Best of {len(self.trials)} trials: {best.label}, validation loss {best.value:.3f}"
        if start is None or start.value is None:
            return f"{said}."
        if start is best:
            return f"{said}; these are the settings that it started with."
        return f"{said}; the settings that it started with reached {start.value:.3f}."

    def _parts(self) -> list[Table | str]:
        names = [axis.field for axis in self.space]
        rows = []
        for trial in self.ranked:
            value = "" if trial.value is None else f"{trial.value:.3f}"
            state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
            settings = [short(trial.settings[name]) for name in names]
            update = max((step for step, _ in trial.history.val_losses), default="")
            rows.append([trial.number, *settings, value, update, state, f"{trial.seconds:.0f}"])
        head = ["trial", *names, "validation loss", "after update", "state", "seconds"]
        return [Table(head, rows), self.verdict()]


def search(
    base_model: str | Path,
    splits: Splits,
    config: TrainConfig,
    space: Space,
    run: Run,
    *,
    trials: int = 8,
    seed: int | None = None,
    prune_after: int | None = 2,
    resume: bool = True,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> SearchReport:
    """Search for the settings with the lowest validation loss: Optuna's TPE sampler, one short run a trial.

    The first trial is `config` itself where it lies in the space. A trial is cut off when its validation loss is worse
    than the median of earlier ones at the same step, so `config.eval_steps` should fall several times into a run.

    `splits.val` is what a trial is measured on; `splits.test` stays untouched. The space is `{field: (low, high)}` or
    `{field: [a, b, c]}`; log scale and whole numbers come from the field. Each trial is a run below `run`; raise
    `trials` to go on with a finished search, or start afresh with `resume=False`. `seed` is that of the draws, by
    default the config's. `prune_after` trials must be finished before one may be cut off; None lets all run to their
    end. When another thread sets `stop`, the running trial is left resumable and the report so far comes back.

    Raises:
        ConfigError: a bad space (all its problems at once), or a search with other settings in this folder.
        MissingExtra: Optuna is not installed.
    """
    load_optuna()
    counts = {"trials": trials, "prune_after": trials if prune_after is None else prune_after}
    if bad := [f"{name}={value!r}" for name, value in counts.items() if type(value) is not int or value < 1]:
        raise ConfigError("\n".join(f"{said} wants a whole number, 1 or more." for said in bad))
    found = axes(space, config)
    kind = {"kind": "search", "seed": config.seed if seed is None else seed, "prune_after": prune_after}
    here = {axis.field: getattr(config, axis.field) for axis in found}
    first = [here] if all(axis.holds(here[axis.field]) for axis in found) else []
    task = _Task(base_model, splits, config, found, run, stop)
    return task.run_trials(kind, first, trials, resume, progress)


def vary(
    base_model: str | Path,
    splits: Splits,
    config: TrainConfig,
    field: str,
    values: list[Any],
    run: Run,
    *,
    resume: bool = True,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> SearchReport:
    """What does one setting do? One short run for each of `values`, in their order, all else equal and nothing cut off.

    Raises:
        ConfigError: a bad value, or other runs in this folder.
        MissingExtra: Optuna is not installed.
    """
    load_optuna()
    found = axes({field: list(values)}, config)
    queue = [{field: value} for value in found[0].choices]
    task = _Task(base_model, splits, config, found, run, stop)
    return task.run_trials({"kind": "vary", "seed": 0, "prune_after": None}, queue, len(queue), resume, progress)


def load_optuna() -> Any:
    """Optuna, or an error that names the command which installs it."""
    try:
        import optuna
    except ImportError as error:
        install = "pip install 'optuna>=5,<6' (the extra ftkit[sweep])"
        raise MissingExtra(f"A search over settings needs Optuna. Run: {install}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a log line about every study and trial says nothing new
    return optuna


def _begin(run: Run, setup: dict[str, Any], space: tuple[Axis, ...], queue: list[dict[str, Any]], resume: bool) -> Any:
    """Take up the study that stands in the folder, or start one whose first trials have the settings in `queue`."""
    if not resume:
        run.reopen("search")
        for place in (run / "trials").glob("*"):
            runs.remove(place)
        (run / _JOURNAL).unlink(missing_ok=True)
    study = _study(run)
    before = study.user_attrs.get("setup", setup)
    if differing := [name for name in {**before, **setup} if before.get(name) != setup.get(name)]:
        said = "; ".join(_difference(name, before.get(name), setup.get(name)) for name in differing)
        other = f"{run.path} holds a search with another setup: {said}"
        raise ConfigError(f"{other}. Choose another folder, or pass resume=False.")
    if "setup" not in study.user_attrs:
        study.set_user_attr("setup", setup)
        for settings in queue:
            drawn = {axis.field: settings[axis.field] for axis in space}
            study.enqueue_trial(
                {a.field: a.choices.index(drawn[a.field]) if a.choices else drawn[a.field] for a in space}
            )
    optuna, patience = load_optuna(), setup["prune_after"]
    never = optuna.pruners.NopPruner()
    study.pruner = never if patience is None else optuna.pruners.MedianPruner(n_startup_trials=patience)
    for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # by a kill, or by `stop`
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(left.params, user_attrs={"folder": left.user_attrs.get("folder")})
    return study


def _study(run: Run) -> Any:
    """The study of a run folder, made where there is none; a damaged journal is a DataError."""
    optuna = load_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = str(run / _JOURNAL)
    try:  # mounted drives know no symbolic links, which Optuna's own lock is made of
        storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
        study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}). Pass resume=False to search afresh.") from error
    return study


def _ask(study: Any, report: SearchReport) -> Any:
    """Optuna's next trial, a queued one first; None when no new settings are left.

    The draw depends on the seed and on the trials so far alone, so a search that was killed goes on as it would have.
    """
    optuna = load_optuna()
    waiting = study.get_trials(states=[optuna.trial.TrialState.WAITING])
    if not waiting and len(report.trials) >= combinations(report.space):
        return None
    distributions = {axis.field: _distribution(axis) for axis in report.space}
    draw = random.Random(f"{study.user_attrs['setup']['seed']}-{len(report.trials)}")
    tried = [trial.settings for trial in report.trials]
    for _ in range(_REDRAWS):
        study.sampler = optuna.samplers.TPESampler(seed=draw.randrange(2**31), n_startup_trials=_RANDOM_FIRST)
        trial = study.ask(distributions)
        if waiting or _settings(trial, report.space) not in tried:
            if trial.user_attrs.get("folder") is None:
                trial.set_user_attr("folder", f"{len(report.trials):03d}")
            return trial
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return None


@dataclass(frozen=True)
class _Task:
    """What all trials of a search share."""

    base_model: str | Path
    splits: Splits
    config: TrainConfig
    space: tuple[Axis, ...]
    run: Run
    stop: threading.Event | None

    def run_trials(
        self, kind: dict[str, Any], queue: list[dict[str, Any]], trials: int, resume: bool, progress: bool
    ) -> SearchReport:
        """Run what has not ended yet, and report."""
        from tqdm.auto import tqdm

        run, space = self.run, self.space
        setup = {
            "base_model": str(self.base_model),
            "data_digest": data.digest(self.splits.train, self.splits.val),
            "config": dataclasses.asdict(self.config),
            "order": [axis.field for axis in space],
            "ranges": {axis.field: axis.given for axis in space if not axis.choices},
            "choices": {axis.field: axis.given for axis in space if axis.choices},
        }
        study = _begin(run, json.loads(json.dumps(setup | kind)), space, queue, resume)
        report = SearchReport.open(run)
        with tqdm(total=trials, initial=len(report.trials), unit="trial", disable=not progress, leave=False) as bar:
            while len(report.trials) < trials:
                trial = _ask(study, report)
                if trial is None or not self._attempt(study, trial, bar):
                    break
                bar.update()
                report = SearchReport.open(run)
        complete = len(report.trials) >= min(trials, combinations(space))
        if complete and report.ranked[0].state == "finished":
            best, seconds = report.best_trial, round(sum(trial.seconds for trial in report.trials), 1)
            run.finish("search", trials=len(report.trials), best=best.settings, value=best.value, seconds=seconds)
        return report

    def _attempt(self, study: Any, trial: Any, bar: Any) -> bool:
        """Run one trial to its end and tell Optuna; False where it was interrupted and is left resumable."""
        folder = trial.user_attrs["folder"]
        place = Run.create(folder, self.run / "trials")

        def tell(step: int, total: int) -> None:
            bar.set_postfix_str(f"trial {int(folder)}, step {step} of {total}")

        watcher, reason = _Watcher(trial, self.stop, tell), ""
        settled, model = self.config.replace(**_settings(trial, self.space)), None
        try:
            if not place.finished("train"):
                model, tokenizer = models.load(self.base_model, settled)
                train(model, tokenizer, self.splits, settled, place, stop=watcher.halt, watch=watcher)
        except (PreflightError, TrainingError) as error:
            reason = str(error).splitlines()[0]
            watcher.state = "failed" if watcher.state == "finished" else watcher.state  # its weights may be no numbers
        finally:
            model = None
            gc.collect()  # a model and its hooks refer to each other
            release_memory()
        if watcher.state == "stopped" or (watcher.state == "finished" and not place.finished("train")):
            return False
        history = _curve(place)
        losses = [loss for _, loss in history.val_losses] or [math.nan]
        value = min(losses) if self.config.early_stopping_patience else losses[-1]  # it keeps the best adapter
        if watcher.state == "finished" and not math.isfinite(value):
            watcher.state = "diverged"
        kept = value if math.isfinite(value) else None
        ended = {"state": watcher.state, "value": kept, "seconds": round(history.seconds, 1), "reason": reason}
        trial.set_user_attr("ended", ended)
        states = load_optuna().trial.TrialState
        if watcher.state == "finished":
            study.tell(trial, value)
        else:  # one that diverged counts as cut off, so that the sampler keeps away
            study.tell(trial, state=states.FAIL if watcher.state == "failed" else states.PRUNED)
        for checkpoint in all_in(place / "checkpoints"):
            remove_checkpoint(checkpoint)
        with contextlib.suppress(OSError):  # absent, or holds what is not ours
            (place / "checkpoints").rmdir()
        return True


class _Watcher:
    """Looks at each point of a running trial, and halts it when Optuna, a number that is none, or a person says so."""

    def __init__(self, trial: Any, stop: threading.Event | None, tell: Callable[[int, int], None]) -> None:
        self.trial, self.stop, self.tell = trial, stop, tell
        self.halt, self.state, self._seen = threading.Event(), "finished", 0

    def __call__(self, points: Sequence[HistoryPoint], total: int) -> None:
        for point in points[self._seen :] if self.state == "finished" else ():
            if not all(math.isfinite(value) for value in (point.loss, point.val_loss) if value is not None):
                self.state = "diverged"
                break
            if point.val_loss is None:
                continue
            self.trial.report(point.val_loss, point.step)
            if point.step < total and self.trial.should_prune():
                self.state = "pruned"
                break
        self._seen = len(points)
        self.tell(points[-1].step, total)
        if self.stop is not None and self.stop.is_set() and self.state == "finished":
            self.state = "stopped"
        if self.state != "finished":
            self.halt.set()


def _curve(place: Run) -> History:
    path = place / "history.csv"
    return History.load(path) if path.exists() else History((), 0.0, 0.0, 0)


def _distribution(axis: Axis) -> Any:
    optuna = load_optuna()
    if axis.choices:  # by place: a list of module names is no value that Optuna stores
        return optuna.distributions.CategoricalDistribution(range(len(axis.choices)))
    kind = optuna.distributions.IntDistribution if axis.whole else optuna.distributions.FloatDistribution
    return kind(axis.low, axis.high, log=axis.log)


def _settings(trial: Any, space: tuple[Axis, ...]) -> dict[str, Any]:
    """What Optuna drew, as settings."""
    found = {}
    for axis in space:
        drawn = trial.params[axis.field]
        found[axis.field] = axis.choices[drawn] if axis.choices else axis.rounded(drawn)
    return found


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{key} ({short(before.get(key))} then, {short(now.get(key))} now)" for key in changed)
    return f"{name} ({before} then, {now} now)"
