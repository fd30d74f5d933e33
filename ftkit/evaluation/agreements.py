"""How far raters agree, and how many ratings a question needs. Knows numbers, and neither texts nor forms."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

from ftkit import tables
from ftkit.errors import ConfigError, DataError
from ftkit.evaluation.ratings import Ratings
from ftkit.evaluation.statistics import LARGEST, resampled
from ftkit.figures import BLUE, ORANGE, axes, label
from ftkit.tables import Table

WIN_SHARE_SD = 0.5  # the widest that values between 0 and 1 can spread
_SIZES = (20, 50, 100, 200, 300, 500, 1_000)
_ENOUGH = (200, 500)  # what is often advised

Level = Literal["nominal", "ordinal", "interval"]
Measure = Callable[[Any], Any]


@dataclass(frozen=True)
class Coefficient:
    """One measure of agreement with its 95 % interval (bootstrap over items); None with the reason in `note`."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    units: int
    note: str = ""


@tables.shown
@dataclass(frozen=True)
class Agreement:
    """How far raters agree on the same answers, beyond what chance gives."""

    level: str
    raters: tuple[str, ...]
    coefficients: tuple[Coefficient, ...]

    def __getitem__(self, name: str) -> Coefficient:
        """A coefficient by its name, such as "Cohen's kappa"."""
        found = {measured.name: measured for measured in self.coefficients}
        if name not in found:
            raise ConfigError(f"No coefficient {name!r} for {len(self.raters)} raters. There are: {', '.join(found)}.")
        return found[name]

    def _parts(self) -> list[Table | str]:
        rows = []
        for found in self.coefficients:
            written = "undefined" if found.value is None else f"{found.value:.3f}"
            if found.value is not None and found.low is not None:
                written += f" [{found.low:.2f}, {found.high:.2f}]"
            rows.append((found.name, written, found.units, found.note))
        caption = f"{len(self.raters)} raters, {self.level} values"
        reading = "1 is full agreement; for the coefficients 0 is what chance alone gives, below it is less than that."
        return [Table(("measure", "value [95 %]", "answers", "note"), rows, caption), reading]


def agreement(
    ratings: Ratings | Mapping[str, Mapping[Any, float]], level: Level = "ordinal", *, seed: int = 0
) -> Agreement:
    """Exact agreement, Cohen's kappa (two raters), Fleiss' kappa and Krippendorff's alpha, with intervals.

    Cohen's kappa has quadratic weights unless `level` is "nominal": one step apart is a small disagreement. Fleiss'
    kappa knows equal or unequal alone, and reads what every rater rated. Krippendorff's alpha reads whatever two rated.
    Intervals resample items, so that answers to one prompt stay together.

    Args:
        ratings: what `read_ratings` gives; or `{rater: {answer: value}}`, where an answer is any key, and of a tuple
            the first part names its item. A judge may be one of the raters.
        level: what differences of values mean: "nominal" names, "ordinal" ranks, "interval" distances.
        seed: of the resampling.

    Raises:
        DataError: fewer than two raters, or a value that is no finite number.
    """
    import numpy as np

    if level not in ("nominal", "ordinal", "interval"):
        raise ConfigError(f"level={level!r} is unknown. Choose nominal, ordinal or interval.")
    by_rater = ratings.by_rater() if isinstance(ratings, Ratings) else ratings
    _check(by_rater)
    units = list(dict.fromkeys(itertools.chain.from_iterable(by_rater.values())))
    values = sorted({*itertools.chain.from_iterable(given.values() for given in by_rater.values())})
    place = {value: number for number, value in enumerate(values)}
    chosen = np.full((len(by_rater), len(units)), -1)
    for rater, given in enumerate(by_rater.values()):
        for number, unit in enumerate(units):
            if unit in given:
                chosen[rater, number] = place[given[unit]]
    counts = np.stack([(chosen == number).sum(axis=0) for number in range(len(values))], axis=1)
    items = [unit[0] if isinstance(unit, tuple) else unit for unit in units]
    shared, complete = counts.sum(axis=1) >= 2, (chosen >= 0).all(axis=0)
    measures: dict[str, tuple[Any, Measure]] = {
        "exact agreement": (shared, lambda weights: _exact(counts[shared], weights)),
        "Fleiss' kappa": (complete, lambda weights: _fleiss(counts[complete], weights)),
        "Krippendorff's alpha": (shared, lambda weights: _alpha(counts[shared], values, level, weights)),
    }
    if len(by_rater) == 2:
        apart = np.subtract.outer(values, values) ** 2 if level != "nominal" else 1 - np.eye(len(values))
        cells = np.eye(len(values) ** 2)[chosen[0, complete] * len(values) + chosen[1, complete]]
        measures["Cohen's kappa"] = complete, lambda weights: _cohen(cells, apart, weights)
    found = []
    for name, (used, measure) in measures.items():
        found.append(_measured(name, [item for item, there in zip(items, used, strict=True) if there], measure, seed))
    return Agreement(level, tuple(by_rater), tuple(found))


def _check(by_rater: Mapping[str, Mapping[Any, float]]) -> None:
    if not isinstance(by_rater, Mapping) or not all(isinstance(given, Mapping) for given in by_rater.values()):
        raise DataError("Ratings are wanted as read_ratings gives them, or as {rater: {answer: value}}.")
    if len(by_rater) < 2:
        raise DataError(
            f"Agreement needs two raters or more, and there are {len(by_rater)}. "
            "Let a second person rate the same sample: rating_form(..., rater='another name')."
        )
    if not any(by_rater.values()):
        raise DataError(f"None of the {len(by_rater)} raters rated anything.")
    problems = []
    for rater, given in by_rater.items():
        for unit, value in given.items():
            if isinstance(value, bool) or not isinstance(value, SupportsFloat) or not abs(value) < LARGEST:
                problems.append(f"{rater!r} gave {value!r} to {unit!r}")
    if problems:
        raise DataError("Ratings must be finite numbers; leave out what was not rated. " + "; ".join(problems) + ".")


def _measured(name: str, items: Sequence[Any], measure: Measure, seed: int) -> Coefficient:
    """A measure of answers to these items, and the middle 95 % of it over the draws of items in which it is defined."""
    import numpy as np

    if not items:
        return Coefficient(name, None, None, None, 0, "no answer was rated by all, or by two where two are enough")
    names = {item: number for number, item in enumerate(dict.fromkeys(items))}
    cluster = [names[item] for item in items]
    value = float(measure(np.ones((1, len(items)), dtype=int))[0])
    if not math.isfinite(value):
        reason = "everybody gave one and the same value throughout, so chance agreement is certain too (0/0)"
        return Coefficient(name, None, None, None, len(items), reason)
    drawn = resampled(lambda weights: measure(weights[:, cluster]), len(names), seed)
    defined = drawn[np.isfinite(drawn)]
    if defined.min() == defined.max():
        return Coefficient(name, value, None, None, len(items), "no interval: all items agree alike")
    low, high = np.percentile(defined, [2.5, 97.5])
    lost = len(drawn) - len(defined)
    note = f"undefined in {lost:,} of {len(drawn):,} resamples, which are left out" if lost else ""
    return Coefficient(name, value, float(low), float(high), len(items), note)


def _exact(counts: Any, weights: Any) -> Any:
    """Share of pairs of raters who gave the same value, averaged over answers."""
    raters = counts.sum(axis=1)
    pairs = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    return _divided(weights @ pairs, weights.sum(axis=1))


def _cohen(cells: Any, apart: Any, weights: Any) -> Any:
    """Weighted kappa (Cohen 1968) of every draw at once: scikit-learn's gives the same, 2,000 of them in seconds."""
    k = len(apart)
    table = (weights @ cells).reshape(-1, k, k)
    total = table.sum(axis=(1, 2), keepdims=True)
    expected = table.sum(axis=2, keepdims=True) * table.sum(axis=1, keepdims=True) / total.clip(1)
    return 1 - _divided((apart * table).sum(axis=(1, 2)), (apart * expected).sum(axis=(1, 2)))


def _fleiss(counts: Any, weights: Any) -> Any:
    """Fleiss (1971): agreement of any raters, as many for each answer, beyond what the shares of values give."""
    shares = weights @ counts
    by_chance = (_divided(shares, shares.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return 1 - _divided(1 - _exact(counts, weights), 1 - by_chance)


def _alpha(counts: Any, values: list[float], level: Level, weights: Any) -> Any:
    """Krippendorff's alpha of every draw."""
    import krippendorff
    import numpy as np

    found = []
    for drawn in weights:
        taken = np.repeat(counts, drawn, axis=0)
        varied = (taken.sum(axis=0) > 0).sum() > 1
        alpha = math.nan
        if varied:
            alpha = krippendorff.alpha(value_counts=taken, value_domain=values, level_of_measurement=level)
        found.append(alpha)
    return np.array(found)


def _divided(above: Any, below: Any) -> Any:
    """A ratio; not a number where nothing is below, rounding apart."""
    import numpy as np

    enough = np.abs(below) > 1e-12
    return np.where(enough, above / np.where(enough, below, 1), np.nan)


@tables.shown
@dataclass(frozen=True)
class RatingsNeeded:
    """How many items must be rated for an answer of some precision; `n` is that number."""

    n: int
    margin: float
    sd: float
    confidence: float
    power: float | None

    def half_width(self, n: int) -> float:
        """How far the interval of a mean of `n` ratings reaches to either side."""
        return _z(0.5 + self.confidence / 2) * self.sd / math.sqrt(n)

    def detectable(self, n: int) -> float:
        """The smallest true difference from no preference that `n` ratings find with this power, 0.8 by default."""
        return self.half_width(n) + _z(self.power or 0.8) * self.sd / math.sqrt(n)

    def _parts(self) -> list[Table | str]:
        aim = f"for an interval of ±{self.margin:g} at {self.confidence:.0%} confidence"
        if self.power is not None:
            aim = f"to find a true difference of {self.margin:g} with power {self.power:.0%}"
        found = f"finds with power {self.power or 0.8:.0%}"
        sizes = sorted({*_SIZES, self.n})
        rows = [(f"{n:,}", f"±{self.half_width(n):.3f}", f"{self.detectable(n):.3f}") for n in sizes]
        low, high = (f"±{self.half_width(n):.3f}" for n in _ENOUGH)
        return [
            f"{self.n:,} items {aim}, where single ratings spread with a standard deviation of {self.sd:g}.",
            Table(("items", f"{self.confidence:.0%} interval", found), rows),
            f"The often advised {_ENOUGH[0]} to {_ENOUGH[1]} items are {low} to {high}. Half the width takes "
            "four times the items. A second rater of the same item is no second item.",
        ]


def ratings_needed(
    margin: float, *, sd: float = WIN_SHARE_SD, confidence: float = 0.95, power: float | None = None
) -> RatingsNeeded:
    """How many items to rate, by the normal approximation; one rating an item.

    Args:
        margin: wanted half-width of the interval of a win share (0.05 is five points) or of a mean rating; with `power`
            the true difference that is to be found, of a win share from 0.5 or of one mean paired with another.
        sd: standard deviation of single ratings (or of paired differences): 0.5 is the most that a win share can have;
            ties make it smaller. Ratings from 1 to 5 often spread by about 1: take it from a first few.
        confidence: of the interval, or one minus the share of false alarms.
        power: how often a difference of `margin` is to be found, such as 0.8.

    Raises:
        ConfigError: a number outside its range.
    """
    problems = []
    for name, value in (("margin", margin), ("sd", sd)):
        if not (isinstance(value, int | float) and 1e-6 <= value <= 1e6):
            problems.append(f"{name}={value!r} is no positive number")
    for name, share in (("confidence", confidence), ("power", power)):
        if share is not None and not 0.5 <= share < 1:
            problems.append(f"{name}={share!r} is outside 0.5 to 1 (a share: 0.95 is 95 %)")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    reach = _z(0.5 + confidence / 2)
    if power is not None:
        reach += _z(power)
    return RatingsNeeded(max(2, math.ceil((reach * sd / margin) ** 2 - 1e-9)), margin, sd, confidence, power)


def plot_ratings_needed(needed: RatingsNeeded, ax: Any = None) -> Any:
    """How far may a mean of so many ratings be from the truth? Half-width of its interval, and what it can find."""
    ax = axes(ax)
    sizes = sorted({*_SIZES, needed.n})
    ax.axvspan(*_ENOUGH, color=BLUE, alpha=0.12, linewidth=0, label=f"often advised: {_ENOUGH[0]} to {_ENOUGH[1]}")
    ax.plot(sizes, [needed.half_width(n) for n in sizes], "o", color=BLUE, label="half-width of the interval")
    ax.plot(
        sizes,
        [needed.detectable(n) for n in sizes],
        "s",
        color=ORANGE,
        mfc="none",
        label=f"difference found with power {needed.power or 0.8:.0%}",
    )
    ax.axhline(needed.margin, color="black", linestyle=":", linewidth=1, label=f"wanted: {needed.margin:g}")
    ax.set_xscale("log")
    ax.set_xticks(_SIZES, [f"{n:,}" for n in _SIZES])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    unit = "points of a share (0.1 is ten points)" if needed.sd <= WIN_SHARE_SD else "points of the rating"
    label(ax, "rated items", unit, f"How far may a mean of n ratings be off? {needed.n:,} reach what is wanted")
    return ax


def _z(share: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(share))
