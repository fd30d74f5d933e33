"""Fit the constants of `footprint` to measured points, and estimate each point by constants that never saw its model.

Each constant moves the error of some points only, so they are found one after another by ternary search, round after round,
until none moves.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

from ftkit.footprint import GIB, Constants, terms, total
from ftkit.measured import Point

_RANGES = {
    "logits": (1.0, 6.0),
    "logits_wide": (1.0, 6.0),
    "logits_fast": (0.5, 5.0),
    "scores": (4.0, 30.0),
    "scores_wide": (4.0, 30.0),
    "kept": (0.4, 2.0),
}
_FINE = 1e-3


def likely(point: Point, constants: Constants) -> float:
    """The estimate of one point's peak, in GiB."""
    return total(terms(point.shape, point.way, constants)) / GIB


def error(constants: Constants, points: Sequence[Point]) -> float:
    """Mean absolute relative error: one odd log then counts as one, not as the square of its oddness."""
    return sum(abs(likely(point, constants) / point.allocated_gib - 1) for point in points) / len(points)


def fit(points: Sequence[Point], rounds: int = 6) -> Constants:
    """The constants with the smallest error on these points, to two decimals; those that no point tells of stay as they are."""
    found = Constants()
    names = [field.name for field in fields(Constants)]
    for _ in range(rounds):
        before = found
        for name in names:
            found = _best(found, name, points)
        if all(abs(getattr(found, name) - getattr(before, name)) < _FINE for name in names):
            break
    return replace(found, **{name: round(getattr(found, name), 2) for name in names})


def held_out(points: Sequence[Point]) -> list[tuple[Point, float]]:
    """Each point with its estimate in GiB, under constants that were fitted without its model."""
    estimates = []
    for model in dict.fromkeys(point.model for point in points):
        constants = fit([point for point in points if point.model != model])
        estimates += [(point, likely(point, constants)) for point in points if point.model == model]
    return estimates


def mean_error(pairs: Sequence[tuple[Point, float]], quality: str) -> float:
    """Mean absolute relative error of estimates such as `held_out` gives, over the points of one quality."""
    errors = [abs(guess / point.allocated_gib - 1) for point, guess in pairs if point.quality == quality]
    return sum(errors) / len(errors)


def _best(start: Constants, name: str, points: Sequence[Point]) -> Constants:
    low, high = _RANGES[name]
    touched = [point for point in points if _moves(point, name)]
    if not touched:
        return start
    while high - low > _FINE:
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if error(replace(start, **{name: one}), touched) <= error(replace(start, **{name: two}), touched):
            high = two
        else:
            low = one
    return replace(start, **{name: (low + high) / 2})


def _moves(point: Point, name: str) -> bool:
    low, high = (likely(point, Constants(**{name: value})) for value in _RANGES[name])
    return low != high
