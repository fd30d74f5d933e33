"""How far chance may have moved a mean or a difference, and what a sample can tell. Knows numbers, and no model.

Rows of one prompt are no independent evidence: wherever `clusters` are given, whole clusters are drawn and counted.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.errors import DataError

RESAMPLES = 2_000
MANY = 200  # clusters from which on the bootstrap's own quantiles are as true as Student's
_Z = 1.959964
LARGEST = 1e100  # scores beyond it have no squares
POWER = 0.8


@dataclass(frozen=True)
class Score:
    """A mean (a share, or a difference of shares) with its 95 % interval; NaN where nothing was scored."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "not scored"
        if max(map(abs, (self.value, self.low, self.high))) <= 1:
            return f"{self.value:.1%} [{self.low:.0%}, {self.high:.0%}]"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Sequence[float], clusters: Sequence[str] | None = None, *, seed: int = 0) -> Score:
    """Mean of scores with its 95 % interval.

    Scores between 0 and 1 get Wilson's interval (1927), which never leaves 0 to 1 and stays honest at its ends: for
    independent passes and failures as it is, else with the number of independent answers that the spread between
    clusters implies, and Student's t with clusters - 1. From 200 clusters on, and where scores know no bounds, see
    `difference_interval`.

    Raises:
        DataError: no values, a value that is no number, or not one cluster a value.
    """
    import numpy as np

    array, groups = _checked(values, clusters)
    mean, count = float(array.mean()), len(np.unique(groups))
    if array.min() < 0 or array.max() > 1:
        return _spread(array, groups, -math.inf, math.inf, seed)
    if array.min() == array.max() or (count == len(array) and set(array.tolist()) <= {0.0, 1.0}):
        low, high = _wilson(mean, count, _Z)
    elif count >= MANY or count == 1:
        return _spread(array, groups, 0.0, 1.0, seed)
    else:
        error = _standard_error(array, groups)
        independent = max(1.0, mean * (1 - mean) / max(error**2, 1e-12))
        low, high = _wilson(mean, independent, _student(count))
    return Score(mean, min(low, mean), max(high, mean))


def mean_within(scored: Sequence[tuple[float | None, str]], least: float, most: float) -> Score:
    """Mean of (value, cluster) on a scale, with an interval that stays on it; None is left out."""
    known = [(value, cluster) for value, cluster in scored if value is not None]
    if not known:
        return Score(math.nan, math.nan, math.nan)
    width = most - least
    shares = [(value - least) / width for value, _ in known]
    found = interval(shares, [cluster for _, cluster in known])
    value = sum(value for value, _ in known) / len(known)
    return Score(value, min(value, least + width * found.low), max(value, least + width * found.high))


def difference_interval(differences: Sequence[float], clusters: Sequence[str] | None = None, *, seed: int = 0) -> Score:
    """Mean of paired differences with its 95 % interval.

    From 200 clusters on the percentile bootstrap (Efron 1979; 2,000 resamples of whole clusters), below that Student's
    t with clusters - 1. Differences of passes and failures, and pairs that all agree, get Bonett and Price's interval
    (2012), which adds one pair of either kind: where nothing differed, both sides of 0 stay possible.

    Raises:
        DataError: no values, a value that is no number, or not one cluster a value.
    """
    import numpy as np

    array, groups = _checked(differences, clusters)
    count, passes = len(np.unique(groups)), set(array.tolist()) <= {-1.0, 0.0, 1.0}
    if (passes and count == len(array)) or (array.min() == array.max() and abs(array[0]) <= 1):
        mean = float(array.mean())
        middle = mean * count / (count + 2)
        square = (float((array**2).mean()) * count + 2) / (count + 2)
        reach = _Z * math.sqrt((square - middle**2) / (count + 2))
        return Score(mean, max(-1.0, min(middle - reach, mean)), min(1.0, max(middle + reach, mean)))
    limit = 1.0 if np.abs(array).max() <= 1 else math.inf
    return _spread(array, groups, -limit, limit, seed)


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """Exact McNemar's test: how often chance alone would part the pairs at least so unevenly (two-sided p-value).

    Raises:
        DataError: values other than 0 and 1, or of other lengths.
    """
    from scipy.stats import binomtest

    olds, news = (_checked(values, None)[0] for values in (before, after))
    if len(olds) != len(news) or not {*olds.tolist(), *news.tolist()} <= {0.0, 1.0}:
        raise DataError(
            f"McNemar's test compares passes and failures (1 and 0) of the same prompts; there are {len(olds)} "
            f"values before and {len(news)} after. Compare other scores with difference_interval."
        )
    won, lost = int((news > olds).sum()), int((news < olds).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_test(differences: Sequence[float], clusters: Sequence[str] | None = None, *, seed: int = 0) -> float:
    """Two-sided p-value that a mean paired difference is 0: paired bootstrap, Student's t where clusters are few."""
    import numpy as np
    from scipy.stats import t

    array, groups = _checked(differences, clusters)
    count, mean = len(np.unique(groups)), abs(float(array.mean()))
    if mean == 0 or count == 1:
        return 1.0
    if array.min() == array.max():  # no spread to measure by: how often would signs drawn by lot all agree?
        return float(2.0 ** (1 - count))
    if count < MANY:
        error = _standard_error(array, groups)
        return float(2 * t.sf(mean / error, count - 1)) if error else 1.0
    moved = _resampled(array - array.mean(), groups, seed)
    return float((np.sum(np.abs(moved) >= mean) + 1) / (RESAMPLES + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values raised so that all of them together give at most 5 % false alarms (Holm 1979), in the order given.

    Raises:
        DataError: a p-value that is no number from 0 to 1.
    """
    p_values = _checked(p_values, None)[0].tolist() if len(p_values) else []
    if odd := [value for value in p_values if not 0 <= value <= 1]:
        raise DataError(f"A p-value lies between 0 and 1, and {odd[0]} does not.")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    raised, highest = [1.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        raised[i] = highest
    return raised


def detectable(differences: Sequence[float], clusters: Sequence[str] | None = None, *, power: float = POWER) -> float:
    """The smallest true difference that a sample like this one finds in four of five repeats (at `power=0.8`).

    It follows from how much the pairs differ among themselves, whatever their mean. Past 1, for scores between 0 and 1,
    such a sample finds none.

    Raises:
        DataError: as `interval`; or a power outside 0 to 1.
    """
    if not 0 < power < 1:
        raise DataError(f"power={power} is outside 0 to 1 (how often the difference is to be found; 0.8 is usual).")
    import numpy as np
    from scipy.stats import norm

    array, groups = _checked(differences, clusters)
    count = len(np.unique(groups))
    error = _standard_error(array, groups) if count > 1 else 0.0
    if error == 0:  # all pairs agree: as many may differ as Wilson's interval for none of them allows
        error = math.sqrt(_wilson(0.0, count, _Z)[1] / count)
    return float((_student(count) + norm.ppf(power)) * error)


def detectable_loss(items: int, allowed: float = 0.05, alpha: float = 0.05, power: float = POWER) -> float | None:
    """The smallest true loss that a gate on so many passed items finds with this power; None where it finds none.

    At best: where nothing is gained in return. `alpha` is one test's share: divide it by the number of suites.
    """
    from scipy.stats import beta

    by_chance = math.ceil(math.log(alpha) / math.log(0.5) - 1e-9)
    needed = max(by_chance, math.floor(allowed * items + 1e-9) + 1)
    if needed > items:
        return None
    return float(beta.ppf(power, needed, items - needed + 1))  # P(Binomial(items, loss) >= needed) = power


def resampled(statistic: Callable[[Any], Any], count: int, seed: int = 0) -> Any:
    """`statistic` of 2,000 bootstrap samples: given how often each of `count` clusters was drawn, one row a sample."""
    import numpy as np

    draw, most = np.random.default_rng(seed), max(1, 4_000_000 // count)
    parts = []
    for start in range(0, RESAMPLES, most):
        size = min(most, RESAMPLES - start)
        drawn = draw.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        parts.append(statistic(np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)))
    return np.concatenate(parts)


def _resampled(array: Any, groups: Any, seed: int) -> Any:
    """Means of `array` in 2,000 bootstrap samples of whole clusters."""
    import numpy as np

    sums, sizes = np.bincount(groups, array), np.bincount(groups)
    return resampled(lambda drawn: drawn @ sums / (drawn @ sizes), len(sums), seed)


def _spread(array: Any, groups: Any, least: float, most: float, seed: int) -> Score:
    """The bootstrap's percentiles where clusters are many, Student's t where they are few; one cluster says nothing."""
    import numpy as np

    mean, count = float(array.mean()), len(np.unique(groups))
    if count >= MANY:
        low, high = np.percentile(_resampled(array, groups, seed), [2.5, 97.5])
        return Score(mean, float(low), float(high))
    reach = _student(count) * _standard_error(array, groups) if count > 1 else math.inf
    return Score(mean, max(least, mean - reach), min(most, mean + reach))


def _standard_error(array: Any, groups: Any) -> float:
    """Of the mean of all values, from the spread between clusters (the ratio estimator's, for unequal clusters).

    Few clusters may look alike by chance: never less than if all values were independent.
    """
    import numpy as np

    beyond = array - array.mean()
    sums = np.bincount(groups, beyond)
    count = len(sums)
    if count == 1:
        return 0.0
    between, each = count / (count - 1) * float((sums**2).sum()), float((beyond**2).sum())
    return math.sqrt(max(between, each)) / len(array)


def _student(count: int) -> float:
    """97.5 % quantile of Student's t with clusters - 1."""
    from scipy.stats import t

    return float(t.ppf(0.975, max(count - 1, 1)))


def _wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    spread = quantile * math.sqrt(share * (1 - share) / count + quantile**2 / (4 * count**2))
    middle, scale = share + quantile**2 / (2 * count), 1 + quantile**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _checked(values: Sequence[float], clusters: Sequence[str] | None) -> tuple[Any, Any]:
    """Values as an array, and the number of each one's cluster."""
    import numpy as np

    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"Scores are wanted, a list of numbers ({error}).") from error
    if array.size == 0:
        raise DataError("There are no scores to average: every answer is unscored, or there is none.")
    if array.ndim != 1:
        raise DataError(f"Scores are wanted, one number an answer, and these have the shape {array.shape}.")
    if not (np.abs(array) < LARGEST).all():
        odd = [i for i, value in enumerate(array.tolist(), 1) if not abs(value) < LARGEST]
        raise DataError(
            f"{len(odd)} of {array.size} scores are no numbers that can be averaged (the first is score {odd[0]}). "
            "Leave unscored answers out, and say how many they were."
        )
    if clusters is not None and len(clusters) != array.size:
        raise DataError(f"There are {array.size} scores and {len(clusters)} clusters; each score belongs to one.")
    return array, numbered(range(array.size) if clusters is None else clusters)


def numbered(names: Iterable[Any]) -> Any:
    """The number of each name, equal ones alike, in the order of their first."""
    import numpy as np

    places: dict[Any, int] = {}
    return np.array([places.setdefault(name, len(places)) for name in names])


def macro_f1(wanted: Sequence[str], said: Sequence[str], clusters: Sequence[str], *, seed: int = 0) -> Score:
    """F1 of each wanted label, averaged, with its bootstrap interval; "" among `said` names no label."""
    from sklearn.metrics import f1_score

    value = float(f1_score(wanted, said, labels=sorted(set(wanted)), average="macro", zero_division=0))
    drawn = _macro_f1s(wanted, said, clusters, seed)
    if drawn.min() == drawn.max():  # all right, or all wrong
        return interval([value] * len(said), clusters)
    low, high, _, _ = _around(value, drawn, len(set(clusters)))
    return Score(value, max(0.0, low), min(1.0, high))


def macro_f1_difference(
    wanted: Sequence[str], before: Sequence[str], after: Sequence[str], clusters: Sequence[str], *, seed: int = 0
) -> tuple[Score, float, float]:
    """Difference of macro-F1 after and before with its interval, its p-value, and the smallest that is detectable."""
    from scipy.stats import norm

    if list(before) == list(after):
        none = [0.0] * len(clusters)
        return difference_interval(none, clusters), 1.0, detectable(none, clusters)
    value = macro_f1(wanted, after, clusters).value - macro_f1(wanted, before, clusters).value
    drawn = _macro_f1s(wanted, after, clusters, seed) - _macro_f1s(wanted, before, clusters, seed)
    count = len(set(clusters))
    low, high, p, error = _around(value, drawn, count)
    reach = float((_student(count) + norm.ppf(POWER)) * error)
    return Score(value, max(-1.0, low), min(1.0, high)), p, reach


def _macro_f1s(wanted: Sequence[str], said: Sequence[str], clusters: Sequence[str], seed: int) -> Any:
    """Macro-F1 of 2,000 bootstrap samples of whole clusters, over the labels that each sample wants."""
    import numpy as np

    groups = numbered(clusters)
    labels = np.array(sorted(set(wanted)))
    is_wanted, is_said = (np.asarray(texts)[:, None] == labels for texts in (wanted, said))
    tables = []
    for marks in (is_wanted & is_said, is_wanted, is_said):
        table = np.zeros((groups.max() + 1, len(labels)))
        np.add.at(table, groups, marks)
        tables.append(table)

    def statistic(drawn: Any) -> Any:
        """Macro-F1 of each draw."""
        hits, there, named = (drawn @ table for table in tables)
        f1 = 2 * hits / np.maximum(there + named, 1)
        return (f1 * (there > 0)).sum(axis=1) / (there > 0).sum(axis=1)

    return resampled(statistic, groups.max() + 1, seed)


def _around(value: float, drawn: Any, count: int) -> tuple[float, float, float, float]:
    """Interval, p-value against 0 and standard error of an estimate from its bootstrap samples."""
    import numpy as np
    from scipy.stats import t

    error = float(drawn.std()) * math.sqrt(count / max(count - 1, 1))
    if count >= MANY:
        low, high = np.percentile(drawn, [2.5, 97.5])
        p = float((np.sum(np.abs(drawn - drawn.mean()) >= abs(value)) + 1) / (RESAMPLES + 1))
        return float(low), float(high), p, error
    reach = _student(count) * error
    p = float(2 * t.sf(abs(value) / error, max(count - 1, 1))) if error else 1.0
    return value - reach, value + reach, p, error
