"""How often nominal 95 % intervals cover the truth, in simulation: wanted are 93 to 97 %.

    python benchmarks/intervals.py [--repeats 2000]

Passes and failures are not drawn but counted out: their coverage is exact for each true share, and the row "any share"
averages over 0.5 % to 99.5 %. No interval for a handful of passes and failures holds its level at every single share.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import binom

from ftkit.evaluation import difference_interval, interval

SIZES = (10, 20, 40, 100, 400)
Draw = Callable[[np.random.Generator, int], tuple[Any, Any, float]]


def overlaps(none: float, all_: float) -> Draw:
    """Scores as token F1 gives them: some 0, some 1, the rest between."""

    def draw(random: np.random.Generator, count: int) -> tuple[Any, Any, float]:
        u, between = random.random(count), random.beta(2, 2, count)
        return np.where(u < none, 0.0, np.where(u < none + all_, 1.0, between)), None, all_ + (1 - none - all_) / 2

    return draw


def clustered(share: float, alike: float, each: int = 4) -> Draw:
    """Passes and failures, some a prompt, of prompts that differ in difficulty (intra-cluster correlation `alike`)."""

    def draw(random: np.random.Generator, count: int) -> tuple[Any, Any, float]:
        scale = (1 - alike) / alike
        hard = random.beta(share * scale, (1 - share) * scale, (count, 1))
        names = np.repeat(np.arange(count), each).astype(str)
        return (random.random((count, each)) < hard).astype(float).ravel(), names, share

    return draw


def changes(won: float, lost: float, each: int = 1) -> Draw:
    """Paired differences of passes and failures; with `each` over 1 several a prompt, alike among themselves."""

    def draw(random: np.random.Generator, count: int) -> tuple[Any, Any, float]:
        chances = np.array([won, lost, 1 - won - lost])
        by_prompt = random.dirichlet(3 * chances, count) if each > 1 else np.tile(chances, (count, 1))
        u = random.random((count, each))
        first, second = by_prompt[:, :1], by_prompt[:, :1] + by_prompt[:, 1:2]
        names = np.repeat(np.arange(count), each).astype(str) if each > 1 else None
        return np.where(u < first, 1.0, np.where(u < second, -1.0, 0.0)).ravel(), names, won - lost

    return draw


def moved(up: float, down: float) -> Draw:
    """Paired differences of scores between 0 and 1, of which the rest did not move."""

    def draw(random: np.random.Generator, count: int) -> tuple[Any, Any, float]:
        u, far = random.random(count), random.beta(2, 2, count)
        return np.where(u < up, far, np.where(u < up + down, -far, 0.0)), None, (up - down) / 2

    return draw


SHARES = (0.05, 0.1, 0.3, 0.5, 0.9)
DRAWN: dict[str, tuple[Callable[..., Any], Draw]] = {
    "F1, 20 % at 0, 20 % at 1": (interval, overlaps(0.2, 0.2)),
    "F1, 60 % at 0, 10 % at 1": (interval, overlaps(0.6, 0.1)),
    "F1, 2 % at 0, 90 % at 1": (interval, overlaps(0.02, 0.9)),
    "four a prompt, 50 % pass": (interval, clustered(0.5, 0.5)),
    "four a prompt, 10 % pass": (interval, clustered(0.1, 0.3)),
    "four a prompt, 90 % pass": (interval, clustered(0.9, 0.3)),
    "change, 30 % won, 10 % lost": (difference_interval, changes(0.3, 0.1)),
    "change, 50 % won, none lost": (difference_interval, changes(0.5, 0.0)),
    "change, 10 % won, 10 % lost": (difference_interval, changes(0.1, 0.1)),
    "change, four a prompt": (difference_interval, changes(0.3, 0.1, each=4)),
    "change of F1, 30 % up, 20 % down": (difference_interval, moved(0.3, 0.2)),
    "change of F1, half and half": (difference_interval, moved(0.5, 0.5)),
}


def exact(count: int) -> dict[str, float]:
    """Coverage for independent passes and failures, summed over every possible count of passes."""
    found = [interval([1.0] * hits + [0.0] * (count - hits)) for hits in range(count + 1)]
    low, high = (np.array([getattr(score, end) for score in found]) for end in ("low", "high"))

    def covered(share: float) -> float:
        inside = (low <= share) & (share <= high)
        return float(binom.pmf(np.arange(count + 1), count, share)[inside].sum())

    any_share = float(np.mean([covered(share) for share in np.linspace(0.005, 0.995, 199)]))
    return {"pass or fail, any share": any_share} | {f"pass or fail, {p:.0%} pass": covered(p) for p in SHARES}


def simulated(name: str, count: int, repeats: int, seed: int = 0) -> float:
    """Coverage of one kind of scores in `repeats` draws."""
    of, draw = DRAWN[name]
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(repeats):
        values, clusters, truth = draw(random, count)
        score = of(values, clusters)
        hits += score.low <= truth <= score.high
    return hits / repeats


def main() -> None:
    """Print a row a kind of scores, a column a number of prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    options = parser.parse_args()
    print(f"{'prompts':<34}" + "".join(f"{count:>8}" for count in SIZES))
    counted = [exact(count) for count in SIZES]
    table = {name: [of[name] for of in counted] for name in counted[0]}
    for name in DRAWN:
        table[name] = [simulated(name, count, options.repeats) for count in SIZES]
    for name, row in table.items():
        cells = "".join(f"{share:>7.1%}{' ' if 0.93 <= share <= 0.97 else '!'}" for share in row)
        print(f"{name:<34}{cells}")
    for column, count in enumerate(SIZES):
        shares = [row[column] for row in table.values()]
        inside = sum(0.93 <= share <= 0.97 for share in shares)
        print(f"{count} prompts: {inside} of {len(shares)} between 93 and 97 %, mean {np.mean(shares):.1%}")


if __name__ == "__main__":
    main()
