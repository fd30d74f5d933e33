"""A small search over settings: short real runs, the poor ones cut off early, every one a run folder that survives a kill.

The folders are the record: each trial is drawn from those that ended before it and from the seed alone, so a search that was
killed goes on to the same end as one that was not. Each trial loads the base model anew: LoRA is put into it in place, and
taking it out again leaves Unsloth's and Accelerate's changes behind.
"""

import dataclasses
import gc
import json
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftkit import data, draws, models, plots, storage, sweep_plots
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import ConfigError, DataError, PreflightError, TrainingError
from ftkit.hardware import release_memory
from ftkit.history import History, Point
from ftkit.rates import RateRange, learning_rate_range
from ftkit.runs import Run
from ftkit.space import Axis, Space, axes, combinations, shown
from ftkit.sweep_report import SweepReport, Trial, ended_in, folder_of
from ftkit.train import train

__all__ = ["RateRange", "SweepReport", "Trial", "learning_rate_range", "sweep", "vary"]


def sweep(
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
) -> SweepReport:
    """Search for the settings with the lowest validation loss: Optuna's TPE sampler, one short run a trial.

    The first trial is `config` itself where it lies in the space. A trial is cut off when its validation loss is worse
    than the median of earlier ones at the same step, so `config.eval_steps` should fall several times into a run.

    Args:
        base_model: as for `models.load`.
        splits: `splits.val` is what a trial is measured on; `splits.test` stays untouched.
        config: the settings that do not vary. Its `max_steps` or epochs are the length of a trial.
        space: `{field: (low, high)}` or `{field: [a, b, c]}`; log scale and whole numbers come from the field.
        run: the folder of the search; each trial is a run below it.
        trials: how many in all; raise it to go on with a finished search.
        seed: of the draws; the config's where it is None. Runs are seeded by the config.
        prune_after: finished trials before the first one may be cut off; None lets all run to their end.
        resume: keep the trials that an interrupted search left; False starts afresh.
        stop: when set by another thread, the running trial is left resumable and the report so far comes back.
        progress: show a bar.

    Raises:
        ConfigError: a bad space (all its problems at once), or a search with other settings in this folder.
        MissingExtra: Optuna is not installed.
    """
    draws.load_optuna()
    _positive(trials=trials, prune_after=trials if prune_after is None else prune_after)
    found = axes(space, config)
    seed = config.seed if seed is None else seed
    setup = _setup(base_model, splits, config, found) | {"kind": "sweep", "seed": seed, "prune_after": prune_after}
    _begin(run, setup, resume)

    def draw(number: int, done: tuple[Trial, ...]) -> tuple[dict[str, Any], Any] | None:
        return draws.draw(found, config, done, f"{seed}-{number}", prune_after)

    return _all(base_model, splits, config, run, trials, draw, stop, progress)


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
) -> SweepReport:
    """What does one setting do? One short run for each of `values`, in their order, all else equal and nothing cut off.

    Raises:
        ConfigError: a bad value, or other runs in this folder.
    """
    found = axes({field: list(values)}, config)
    _begin(run, _setup(base_model, splits, config, found) | {"kind": "vary"}, resume)

    def draw(number: int, _: tuple[Trial, ...]) -> tuple[dict[str, Any], Any]:
        return {field: found[0].choices[number]}, None

    return _all(base_model, splits, config, run, len(found[0].choices), draw, stop, progress)


Draw = Callable[[int, tuple[Trial, ...]], tuple[dict[str, Any], Any] | None]


def _all(
    base_model: str | Path,
    splits: Splits,
    config: TrainConfig,
    run: Run,
    trials: int,
    draw: Draw,
    stop: threading.Event | None,
    progress: bool,
) -> SweepReport:
    """Run what has not ended yet, then leave report and figure."""
    from tqdm.auto import tqdm

    with tqdm(total=trials, unit="trial", disable=not progress, leave=False) as bar:
        for number in range(trials):
            done = ended_in(run)
            if number not in {trial.number for trial in done}:
                drawn = draw(number, tuple(trial for trial in done if trial.number < number))
                if drawn is None or not _attempt(base_model, splits, config, number, run, *drawn, stop, bar):
                    break
            bar.update()
    report = SweepReport.open(run)
    if any(trial.value is not None for trial in report.trials):
        plots.save(
            sweep_plots.parameters(report, figure=sweep_plots.blank(len(report.space))), run / "figures/sweep.png"
        )
    if len(report.trials) >= min(trials, combinations(report.space)) and report.ranked[0].state == "finished":
        best = report.best_trial
        run.finish(
            "sweep", trials=len(report.trials), best=best.settings, value=best.value, seconds=round(report.seconds, 1)
        )
    return report


def _attempt(
    base_model: str | Path,
    splits: Splits,
    config: TrainConfig,
    number: int,
    run: Run,
    settings: dict[str, Any],
    suggestion: Any,
    stop: threading.Event | None,
    bar: Any,
) -> bool:
    """Run one trial to its end and keep it; False where it was interrupted and is left resumable."""
    place = Run.create(folder_of(run, number).name, run / "trials")
    watcher = _Watcher(
        suggestion, stop, lambda step, total: bar.set_postfix_str(f"trial {number}, step {step} of {total}")
    )
    reason = ""
    try:
        if not place.finished("train"):
            _short_run(base_model, splits, config.replace(**settings), place, watcher)
    except (PreflightError, TrainingError) as error:
        watcher.state, reason = "failed", str(error).splitlines()[0]
    if watcher.state == "stopped" or (watcher.state == "finished" and not place.finished("train")):
        return False
    history = History.load(place / "history.csv") if (place / "history.csv").exists() else History((), 0.0, 0.0, 0)
    losses = [loss for _, loss in history.val_losses] or [math.nan]
    value = min(losses) if config.early_stopping_patience else losses[-1]  # early stopping keeps the best adapter
    if watcher.state == "finished" and not math.isfinite(value):
        watcher.state = "diverged"
    kept = value if math.isfinite(value) else None
    Trial(number, settings, watcher.state, kept, round(history.seconds, 1), reason, place).keep()
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    return True


def _short_run(base_model: str | Path, splits: Splits, config: TrainConfig, place: Run, watcher: "_Watcher") -> None:
    try:
        model, tokenizer = models.load(base_model, config)
        train(model, tokenizer, splits, config, place, stop=watcher.halt, watch=watcher)
    finally:
        model = None
        gc.collect()  # a model and its hooks refer to each other
        release_memory()


class _Watcher:
    """Looks at each point of a running trial, and halts it when Optuna, a number that is none, or a person says so."""

    def __init__(self, suggestion: Any, stop: threading.Event | None, tell: Callable[[int, int], None]) -> None:
        self.suggestion, self.stop, self.tell = suggestion, stop, tell
        self.halt, self.state, self._seen = threading.Event(), "finished", 0

    def __call__(self, points: Sequence[Point], total: int) -> None:
        for point in points[self._seen :]:
            if self.state == "finished":
                self._look(point, last=point.step >= total)
        self._seen = len(points)
        self.tell(points[-1].step, total)
        if self.stop is not None and self.stop.is_set() and self.state == "finished":
            self.state = "stopped"
        if self.state != "finished":
            self.halt.set()

    def _look(self, point: Point, *, last: bool) -> None:
        if not all(math.isfinite(value) for value in (point.loss, point.val_loss) if value is not None):
            self.state = "diverged"
        elif point.val_loss is not None and self.suggestion is not None:
            self.suggestion.report(point.val_loss, point.step)
            if not last and self.suggestion.should_prune():
                self.state = "pruned"


def _setup(base_model: str | Path, splits: Splits, config: TrainConfig, space: tuple[Axis, ...]) -> dict[str, Any]:
    """What a search rests on, as it stands in `sweep.json`."""
    setup = {
        "base_model": str(base_model),
        "data_digest": data.digest(splits.train, splits.val),
        "config": dataclasses.asdict(config),
        "space": {axis.field: axis.facts() for axis in space},
    }
    plain: dict[str, Any] = json.loads(json.dumps(setup))
    return plain


def _begin(run: Run, setup: dict[str, Any], resume: bool) -> None:
    """Take up the search that stands in the folder, or start one.

    Raises:
        ConfigError: another search stands there.
    """
    path = run / "sweep.json"
    if not resume:
        run.reopen("sweep")
        shutil.rmtree(run / "trials", ignore_errors=True)
    elif path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). Pass resume=False to search afresh.") from error
        if differing := [name for name in {**before, **setup} if before.get(name) != setup.get(name)]:
            said = "; ".join(_difference(name, before.get(name), setup.get(name)) for name in differing)
            raise ConfigError(
                f"{run.path} holds a search with another setup: {said}. Choose another folder, or pass resume=False."
            )
    storage.write_json(path, setup)


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        return ", ".join(
            f"{key} ({shown(before.get(key))} then, {shown(now.get(key))} now)"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        )
    return f"{name} ({before} then, {now} now)"


def _positive(**counts: int) -> None:
    if bad := [
        f"{name}={value!r} wants a whole number, 1 or more."
        for name, value in counts.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]:
        raise ConfigError("\n".join(bad))
