"""Preferences to a win rate, raw or with the length of the answers taken out. Knows numbers, and no judge.

Judges and people prefer longer answers. AlpacaEval 2 asks instead what the win rate would be if both answers had been
of one length: a logistic regression of the preference on the length difference, read where that is zero.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence, Sized
from typing import Any, SupportsFloat

from ftkit.errors import ConfigError, DataError
from ftkit.evaluation.statistics import Score, interval, numbered, resampled

Anchor = tuple[float, float, float]
_ANCHOR_WEIGHT = 0.1  # of each anchor: AlpacaEval's 0.2, shared by two baselines that were told to be long or short
_STRENGTHS, _FOLDS = 10, 5


def win_rate(
    preferences: Sequence[float | None],
    lengths: Sequence[tuple[str | float, str | float]] | None = None,
    length_controlled: bool = False,
    *,
    clusters: Sequence[str] | None = None,
    difficulty: Sequence[float] | None = None,
    anchors: Sequence[Anchor] = (),
) -> Score:
    """How often the model is preferred to the baseline, 0 to 1, with a 95 % interval.

    The interval of a length-controlled rate is that of the same regression without the regularisation, which draws
    rates of small samples towards a half.

    Length-controlled rates are AlpacaEval 2's (Dubois et al. 2024): no intercept, a term for the model and one for tanh
    of the standardised length difference, L1-regularised as strongly as five-fold cross-validation finds best. With
    `difficulty` and `anchors`, which its leaderboard knows for its own instructions, they are the leaderboard's.

    Args:
        preferences: for the model, one an item: 1 it wins, 0 it loses, 0.5 a tie, or a probability. None is a verdict
            that was lost, and is left out.
        lengths: (model, baseline) an item: both answers, or their lengths in characters.
        length_controlled: take the effect of length out; needs `lengths`.
        clusters: what items share a prompt, for the interval; each stands alone by default.
        difficulty: of each item's instruction, as a further term.
        anchors: (standardised length difference, difficulty, preference) of answers by the baseline itself that were
            told to be long or short; they hold the effect of length in place.

    Raises:
        DataError: nothing to average, preferences outside 0 to 1, lengths that are none.
        ConfigError: `length_controlled` without lengths, anchors without difficulty.
    """
    import numpy as np

    _check(preferences, lengths, length_controlled, clusters, difficulty, anchors)
    preferences = list(preferences)
    lengths = None if lengths is None else list(lengths)
    kept = [number for number, preference in enumerate(preferences) if preference is not None]
    wanted = np.array([preferences[number] for number in kept], dtype=float)
    groups = None if clusters is None else [clusters[number] for number in kept]
    raw = interval(wanted.tolist(), groups)
    if not length_controlled or lengths is None or wanted.min() == wanted.max():
        return raw  # where every preference is the same, length explains none
    longer = np.array([_length(lengths[number][1]) - _length(lengths[number][0]) for number in kept], dtype=float)
    if not longer.any():
        return raw
    effect = np.tanh(longer / longer.std(ddof=1)) if longer.std(ddof=1) else np.sign(longer) * math.tanh(1)
    columns = [effect, np.ones(len(kept))]
    if difficulty is not None:
        columns.insert(1, np.array([difficulty[number] for number in kept], dtype=float))
    features = np.column_stack(columns)
    anchored = np.array([(math.tanh(length), hard, 0.0) for length, hard, _ in anchors]).reshape(-1, features.shape[1])
    held = np.array([preference for _, _, preference in anchors])
    weights = np.concatenate([np.full(len(held), _ANCHOR_WEIGHT), np.ones(len(kept))])
    share = _at_no_difference(_fit(np.vstack([anchored, features]), np.concatenate([held, wanted]), weights), features)
    if not len(held):  # liblinear stops a hair before the optimum, on one side: seen from both, the rates sum to 1
        mirrored = features * np.array([-1] + [1] * (features.shape[1] - 1))
        share = (share + 1 - _at_no_difference(_fit(mirrored, 1 - wanted, weights), features)) / 2
    low, high = _spread(features, wanted, groups, anchored, held)
    return Score(share, min(low, share), max(high, share))


def _check(
    preferences: Sequence[float | None],
    lengths: Sequence[tuple[str | float, str | float]] | None,
    length_controlled: bool,
    clusters: Sequence[str] | None,
    difficulty: Sequence[float] | None,
    anchors: Sequence[Anchor],
) -> None:
    if length_controlled and lengths is None:
        raise ConfigError("length_controlled=True needs lengths: (model, baseline), one pair an item.")
    if len(anchors) and difficulty is None:
        raise ConfigError("anchors need the difficulty of each item: AlpacaEval publishes both together.")
    if isinstance(preferences, str | Mapping) or not isinstance(preferences, Sized):
        raise DataError(f"Preferences are a {type(preferences).__name__}: a list is wanted, one number an item.")
    problems = []
    for name, given in (("lengths", lengths), ("clusters", clusters), ("difficulty", difficulty)):
        if given is not None and len(given) != len(preferences):
            problems.append(f"There are {len(preferences)} preferences and {len(given)} {name}; each item has one.")
    for number, preference in enumerate(preferences, 1):
        if preference is not None and not (isinstance(preference, SupportsFloat) and 0 <= preference <= 1):
            problems.append(f"Preference {number} is {preference}: 0 to 1 is wanted, 0.5 for a tie, None where lost.")
    for number, pair in enumerate(() if lengths is None else lengths, 1):
        two = isinstance(pair, Sized) and not isinstance(pair, str | Mapping) and len(pair) == 2
        if not two or not all(0 <= _length(side) < math.inf for side in pair):
            problems.append(f"Lengths {number} are {str(pair)[:60]}: two texts, or two lengths, are wanted.")
    hard = [*(() if difficulty is None else difficulty), *itertools.chain.from_iterable(anchors)]
    if any(len(anchor) != 3 for anchor in anchors) or not all(_is_number(value) for value in hard):
        problems.append(
            "difficulty is a number an item, and an anchor is three: length difference, difficulty, preference."
        )
    if not any(preference is not None for preference in preferences):
        problems.append("There is no preference to average: there are no items, or every verdict was lost.")
    if problems:
        raise DataError("\n".join(problems))


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and math.isfinite(value)


def _length(side: Any) -> float:
    """Characters of a text, or the number itself; NaN for anything else."""
    if isinstance(side, str):
        return len(side)
    return float(side) if isinstance(side, SupportsFloat) else math.nan


def _fit(features: Any, wanted: Any, weights: Any) -> Any:
    """Coefficients of the regression; each item stands in it twice, as won and as lost, weighted by its preference."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    count = len(wanted)
    both, won = np.vstack([features, features]), np.repeat([1, 0], count)
    shares = np.maximum(np.concatenate([wanted, 1 - wanted]), 1e-9) * np.tile(weights, 2)  # liblinear complains of 0

    def fitted(strength: float, rows: Any) -> Any:
        """Coefficients from these rows; a small strength holds them near 0."""
        model = LogisticRegression(
            C=strength, penalty="l1", solver="liblinear", fit_intercept=False, random_state=123
        ).fit(both[rows], won[rows], sample_weight=shares[rows])
        return model.coef_[0]

    def loss(coefficients: Any, rows: Any) -> float:
        """Mean surprise at these rows, nats."""
        logits = both[rows] @ coefficients
        surprise = np.logaddexp(0, logits) - np.concatenate([wanted, wanted])[rows] * logits
        return float((surprise * np.tile(weights, 2)[rows]).mean())

    with warnings.catch_warnings():
        for kind in (FutureWarning, UserWarning):  # the argument penalty has a new name in newer scikit-learn
            warnings.simplefilter("ignore", kind)
        strengths = np.logspace(-4, 4, _STRENGTHS)
        if count < 2 * _FOLDS:
            return fitted(strengths[-1], np.arange(2 * count))
        folds = list(GroupKFold(_FOLDS).split(both, groups=np.tile(np.arange(count), 2)))
        losses = [np.mean([loss(fitted(strength, seen), unseen) for seen, unseen in folds]) for strength in strengths]
        return fitted(strengths[int(np.argmin(losses))], np.arange(2 * count))


def _at_no_difference(coefficients: Any, features: Any) -> float:
    """Mean predicted preference, had all answers been of one length."""
    import numpy as np

    return float((1 / (1 + np.exp(-(features[:, 1:] @ coefficients[1:])))).mean())


def _spread(
    features: Any, wanted: Any, clusters: Sequence[str] | None, anchored: Any, held: Any
) -> tuple[float, float]:
    """95 % interval: the regression fitted anew, by Newton's method, to 2,000 bootstrap samples of whole clusters."""
    import numpy as np

    groups = numbered(range(len(wanted)) if clusters is None else clusters)
    every, preferred = np.vstack([features, anchored]), np.concatenate([wanted, held])
    width = every.shape[1]

    outer = (every[:, :, None] * every[:, None, :]).reshape(len(every), -1)

    def climbed(drawn: Any, coefficients: Any, steps: int) -> Any:
        """Coefficients of each draw, so many steps on."""
        times = np.hstack([drawn[:, groups], np.full((len(drawn), len(held)), _ANCHOR_WEIGHT)])
        for _ in range(steps):
            shares = 1 / (1 + np.exp(-(coefficients @ every.T)))
            slope = (times * (preferred - shares)) @ every - 1e-3 * coefficients
            bend = ((times * shares * (1 - shares)) @ outer).reshape(-1, width, width) + 1e-3 * np.eye(width)
            step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
            coefficients = np.clip(coefficients + np.clip(step, -2, 2), -15, 15)
        return coefficients

    start = climbed(np.ones((1, int(groups.max()) + 1)), np.zeros((1, width)), 15)

    def rates(drawn: Any) -> Any:
        """The rate at no difference in length, of each draw."""
        coefficients = climbed(drawn, start, 5)
        shares = 1 / (1 + np.exp(-(coefficients[:, 1:] @ features[:, 1:].T)))
        counts = drawn[:, groups]
        return (counts * shares).sum(axis=1) / counts.sum(axis=1)

    low, high = np.percentile(resampled(rates, int(groups.max()) + 1), [2.5, 97.5])
    return float(low), float(high)
