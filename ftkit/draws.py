"""What to try next: settings drawn by Optuna's TPE sampler from the trials that ended and a seed, and nothing else.

The study is built anew for every trial, so that a search which was killed goes on as if it had not been.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import MissingExtra
from ftkit.space import Axis, combinations
from ftkit.sweep_report import Trial

_RANDOM_FIRST = 4  # trials before the sampler models what it has seen: fewer is guessing
_REDRAWS = 100


def draw(
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
