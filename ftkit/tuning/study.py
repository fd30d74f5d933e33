"""A small search over settings: short real runs, the poor ones cut off early, every one a run folder that survives a kill.

The folders are the record: each trial is drawn from those that ended before it and from the seed alone, so a search that was
killed goes on to the same end as one that was not. Each trial loads the base model anew: LoRA is put into it in place, and
taking it out again leaves Unsloth's and Accelerate's changes behind.
"""

import dataclasses
import gc
import html
import json
import math
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ftkit import data, figures, files, models
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import ConfigError, DataError, MissingExtra, PreflightError, TrainingError
from ftkit.hardware import release_memory
from ftkit.runs import Run
from ftkit.training import History, HistoryPoint, train
from ftkit.tuning import plots

Space = Mapping[str, Any]

_SPECS = {spec.name: spec for spec in fields(TrainConfig)}

_DIGITS = 3  # a learning rate of 0.000314 says all that a search knows

_NOT_COMPARABLE = {
    "seed": "a lucky seed is no better setting",
    "max_length": "it cuts the validation rows too, so that trials would be measured on different tokens",
    "packing": "packed examples would see each other",
}


@dataclass(frozen=True)
class Axis:
    """One setting and what it may be: from `low` to `high`, or one of `choices`."""

    field: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    log: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a setting lies on this axis."""
        return value in self.choices if self.choices else self.low <= value <= self.high

    def rounded(self, value: float) -> Any:
        """A drawn number as a setting: whole, or with three digits; never outside the range."""
        if self.whole:
            return round(value)
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))

    def facts(self) -> list[Any]:
        """The range or the list as plain values, for a JSON file."""
        listed = [list(c) if isinstance(c, tuple) else c for c in self.choices]
        return ["one of", *listed] if self.choices else ["range", self.low, self.high]

    @classmethod
    def from_facts(cls, field: str, facts: list[Any]) -> "Axis":
        """The axis that `facts` described."""
        kind, *values = facts
        if kind != "one of":
            return _range(field, *values)
        return cls(field, choices=_distinct(values))

    def __str__(self) -> str:
        if self.choices:
            return f"{self.field}: {', '.join(map(shown, self.choices))}"
        return f"{self.field}: {shown(self.low)} to {shown(self.high)}" + (", logarithmic" if self.log else "")


def axes(space: Space, config: TrainConfig) -> tuple[Axis, ...]:
    """Check a space and read it: `{field: (low, high)}` is a range, `{field: [a, b, c]}` a list of choices.

    Args:
        space: the settings that vary.
        config: those that do not; some settings have no effect beside others.

    Raises:
        ConfigError: lists every field that is misspelt, out of its range, without effect, or would make trials incomparable.
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError("The space is empty: name at least one setting, such as {'learning_rate': (1e-4, 1e-3)}.")
    problems, found = [], []
    for field, wanted in space.items():
        said = _problems(str(field), wanted, config)
        problems += said
        if not said:
            found.append(Axis(field, choices=_distinct(wanted)) if isinstance(wanted, list) else _range(field, *wanted))
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found)


def combinations(space: tuple[Axis, ...]) -> float:
    """How many different settings there are; infinite with a range of fractions among them."""
    sizes = [len(a.choices) if a.choices else a.high - a.low + 1 if a.whole else math.inf for a in space]
    return math.prod(sizes)


def shown(value: Any) -> str:
    """A setting in as few characters as say it."""
    if isinstance(value, tuple):
        return " ".join(name.removesuffix("_proj") for name in value)
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def _range(field: str, low: float, high: float) -> Axis:
    spec = _SPECS[field]
    whole = isinstance(spec.default, int)
    ends = (low, high) if whole else (float(low), float(high))
    return Axis(field, *ends, log=bool(spec.metadata["log"]), whole=whole)


def _problems(field: str, wanted: Any, config: TrainConfig) -> list[str]:
    spec = _SPECS.get(field)
    if spec is None:
        return _refused(config, field, None)
    if spec.metadata["group"] == "records":
        return [f"{field} changes what is recorded, not what is learnt: set it in the config."]
    if field in _NOT_COMPARABLE:
        return [f"{field} cannot be searched: {_NOT_COMPARABLE[field]}."]
    if field == "num_train_epochs" and config.max_steps > 0:
        return [
            f"num_train_epochs has no effect while max_steps={config.max_steps}: set max_steps=-1, or search max_steps."
        ]
    if isinstance(wanted, list):
        return _list_problems(field, wanted, config)
    return _range_problems(field, wanted, config)


def _list_problems(field: str, wanted: list[Any], config: TrainConfig) -> list[str]:
    said = [problem for value in wanted for problem in _refused(config, field, value)]
    if not said and len(_distinct(wanted)) < 2:
        said = [f"{field}: {wanted!r} leaves nothing to choose. Give at least two values, or set it in the config."]
    return said


def _range_problems(field: str, wanted: Any, config: TrainConfig) -> list[str]:
    facts = _SPECS[field].metadata
    if facts["low"] is None:
        return [f"{field}: {wanted!r} is no list of choices, and {field} is no number. Write [a, b]."]
    if not isinstance(wanted, tuple) or len(wanted) != 2:
        return [f"{field}: {wanted!r} is neither a range (low, high) nor a list [a, b, c] of choices."]
    said = [problem for value in wanted for problem in _refused(config, field, value)]
    if not said and wanted[0] >= wanted[1]:
        said = [f"{field}: {wanted!r} has its low end at or above its high end. Write (low, high)."]
    if not said and facts["low"] < 0 and wanted[0] < 1:  # -1 means "let the epochs decide", which is no amount
        said = [f"{field}: {wanted!r} begins below 1. A range of amounts wants 1 or more."]
    return said


def _refused(config: TrainConfig, field: str, value: Any) -> list[str]:
    """What the config itself says against this one setting."""
    try:
        config.replace(**{field: value})
    except ConfigError as error:
        return [str(error)]
    return []


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    """Values without repetitions, in their order; lists (target modules) as tuples."""
    return tuple(dict.fromkeys(tuple(v) if isinstance(v, list) else v for v in values))


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
class SearchReport:
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
        """The curve of each trial that has one, under its settings, for `training.plot_runs`."""
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


_RANDOM_FIRST = 4  # trials before the sampler models what it has seen: fewer is guessing

_REDRAWS = 100


def draw_settings(
    space: tuple[Axis, ...], config: TrainConfig, done: tuple[Trial, ...], seed: str, prune_after: int | None
) -> tuple[dict[str, Any], Any] | None:
    """Settings of the next trial and Optuna's handle on it; None when no new settings are left.

    Args:
        space: what varies.
        config: the first trial, where it lies in the space.
        done: the trials that ended.
        seed: of this draw alone.
        prune_after: finished trials before Optuna may cut one off; None never does.
    """
    here = {axis.field: getattr(config, axis.field) for axis in space}
    if not done and all(axis.holds(here[axis.field]) for axis in space):
        return here, _ask(space, done, 0, prune_after, here)
    numbers = random.Random(seed)
    for _ in range(_REDRAWS if len(done) < combinations(space) else 0):
        suggestion = _ask(space, done, numbers.randrange(2**31), prune_after)
        settings = {axis.field: _setting(axis, suggestion.params[axis.field]) for axis in space}
        if settings not in [trial.settings for trial in done]:
            return settings, suggestion
    return None


def _ask(
    space: tuple[Axis, ...],
    done: tuple[Trial, ...],
    seed: int,
    prune_after: int | None,
    given: dict[str, Any] | None = None,
) -> Any:
    """One suggestion of a study that knows the trials that ended; `given` settings are taken as they are."""
    distributions = {axis.field: _distribution(axis) for axis in space}
    with _silent() as optuna:
        never = prune_after is None
        pruner = optuna.pruners.NopPruner() if never else optuna.pruners.MedianPruner(n_startup_trials=prune_after)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_FIRST)
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        for trial in done:
            if trial.state != "failed":
                study.add_trial(_remembered(trial, space, distributions, optuna))
        if given is not None:
            study.enqueue_trial({axis.field: _raw(axis, given[axis.field]) for axis in space})
        return study.ask(distributions)


def _remembered(trial: Trial, space: tuple[Axis, ...], distributions: dict[str, Any], optuna: Any) -> Any:
    """An ended trial as Optuna knows it; one that diverged counts as cut off, so that the sampler keeps away."""
    state = optuna.trial.TrialState
    curve = {step: loss for step, loss in trial.history.val_losses if math.isfinite(loss)}
    finished = trial.state == "finished"
    return optuna.trial.create_trial(
        state=state.COMPLETE if finished else state.PRUNED,
        value=trial.value if finished else None,
        params={axis.field: _raw(axis, trial.settings[axis.field]) for axis in space},
        distributions=distributions,
        intermediate_values=curve,
    )


def _distribution(axis: Axis) -> Any:
    optuna = load_optuna()
    if axis.choices:  # by place: a list of module names is no value that Optuna stores
        return optuna.distributions.CategoricalDistribution(range(len(axis.choices)))
    kind = optuna.distributions.IntDistribution if axis.whole else optuna.distributions.FloatDistribution
    return kind(axis.low, axis.high, log=axis.log)


def _raw(axis: Axis, value: Any) -> Any:
    return axis.choices.index(value) if axis.choices else value


def _setting(axis: Axis, raw: Any) -> Any:
    return axis.choices[raw] if axis.choices else axis.rounded(raw)


def load_optuna() -> Any:
    """Optuna, or an error that names the command which installs it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra(
            "A search over settings needs Optuna. Run: pip install 'optuna>=5,<6' (the extra ftkit[sweep])"
        ) from error
    return optuna


@contextmanager
def _silent() -> Iterator[Any]:
    """Optuna without its log line about every study."""
    optuna = load_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(level)


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
    load_optuna()
    _positive(trials=trials, prune_after=trials if prune_after is None else prune_after)
    found = axes(space, config)
    seed = config.seed if seed is None else seed
    setup = _setup(base_model, splits, config, found) | {"kind": "sweep", "seed": seed, "prune_after": prune_after}
    _begin(run, setup, resume)

    def draw(number: int, done: tuple[Trial, ...]) -> tuple[dict[str, Any], Any] | None:
        return draw_settings(found, config, done, f"{seed}-{number}", prune_after)

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
) -> SearchReport:
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
) -> SearchReport:
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
    report = SearchReport.open(run)
    if any(trial.value is not None for trial in report.trials):
        figures.save(plots.plot_search(report, figure=plots.blank_panels(len(report.space))), run / "figures/sweep.png")
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

    def __call__(self, points: Sequence[HistoryPoint], total: int) -> None:
        for point in points[self._seen :]:
            if self.state == "finished":
                self._look(point, last=point.step >= total)
        self._seen = len(points)
        self.tell(points[-1].step, total)
        if self.stop is not None and self.stop.is_set() and self.state == "finished":
            self.state = "stopped"
        if self.state != "finished":
            self.halt.set()

    def _look(self, point: HistoryPoint, *, last: bool) -> None:
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
    files.write_json(path, setup)


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
