"""Which rows a dataset should hold more or fewer of: balance of labels, diversity, and a share of general examples."""

import random
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import data
from ftkit.cleaning.rules import Outcome, Rule, Ruling
from ftkit.data import Texts, combined
from ftkit.errors import ConfigError, DataError, FtkitWarning

Embed = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Mixture:
    """Task examples with a share of general ones; a `source` column says which is which."""

    examples: Any
    counts: Mapping[str, int]

    @property
    def share(self) -> float:
        """Share of general examples, 0 to 1."""
        return self.counts["general"] / sum(self.counts.values())

    def __str__(self) -> str:
        return f"{self.counts['task']} task + {self.counts['general']} general rows: {self.share:.1%} general"

    def _repr_html_(self) -> str:
        return f"<b>{self}</b>"


def balance(by: str, *, at_most: int | None = None, ratio: float = 1.5, seed: int = 0) -> Rule:
    """Cap every label: drop a random choice of the rows of labels that have too many.

    Args:
        by: the column that names the task or label.
        at_most: rows a label may have; by default `ratio` times the median label.
        ratio: see `at_most`.
        seed: of the choice.
    """
    if at_most is not None and at_most < 1:
        raise ConfigError(f"at_most={at_most!r} would drop every row. Give at least 1.")

    def whole(examples: Any) -> Outcome:
        """Look at all rows that are left."""
        groups = _groups(examples, by)
        unlabelled = len(groups.pop(None, []))  # nobody knows what they are: they stay
        limit = at_most or max(1, round(ratio * statistics.median_low(map(len, groups.values()) if groups else [1])))
        draw, findings = random.Random(seed), {}
        for label, rows in groups.items():
            for i in draw.sample(rows, len(rows) - limit) if len(rows) > limit else ():
                findings[i] = Ruling(f"{by} {label!r} has {len(rows)} rows, {limit} stay", len(rows), limit)
        notes = {"cap": limit, **{f"{label} before": len(rows) for label, rows in groups.items()}}
        return Outcome(findings, notes | ({"rows without a label": unlabelled} if unlabelled else {}))

    cap = f"{at_most} rows" if at_most else f"{ratio:g} times the median"
    return Rule("balance", f"rows of a {by} beyond {cap}, chosen at random", whole=whole)


def resample(examples: Any, by: str, *, power: float = 0.5, seed: int = 0) -> Any:
    """As many rows, drawn so that a label's share is its size to the `power`: 1 changes nothing, 0 makes all equal.

    Small labels repeat rows, large ones lose some (temperature sampling, as in multilingual pre-training).

    Raises:
        DataError: no such column.
    """
    groups = _groups(examples, by)
    weights = {label: len(rows) ** power for label, rows in groups.items()}
    draw, chosen = random.Random(seed), []
    for label, rows in groups.items():
        wanted = max(1, round(len(examples) * weights[label] / sum(weights.values())))
        whole, rest = divmod(wanted, len(rows))
        chosen += rows * whole + draw.sample(rows, rest)
    return examples.select(sorted(chosen))


def mix(task: Any, general: Any, share: float = 0.08, *, seed: int = 0) -> Mixture:
    """Add general examples until they are `share` of all rows: rehearsal, the usual remedy against forgetting.

    Five to ten per cent is the usual dose. The rows come shuffled; columns other than `messages` and `tools` are left behind.

    Raises:
        ConfigError: a share outside 0 to 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share={share!r} is outside 0 to 1 (0.05 to 0.10 is usual).")
    wanted = round(share / (1 - share) * len(task))
    if wanted > len(general):
        warnings.warn(
            f"share={share:g} of {len(task)} task rows wants {wanted} general rows; there are {len(general)}, all are taken.",
            FtkitWarning,
            stacklevel=2,
        )
    rows = sorted(random.Random(seed).sample(range(len(general)), min(wanted, len(general))))
    if not len(task):
        raise DataError("There are no task rows to mix general ones into. Was every row dropped?")
    parts = {"task": task, "general": general.select(rows)}
    named = [_plain(part).add_column("source", [name] * len(part)) for name, part in parts.items() if len(part)]
    return Mixture(
        combined(named).shuffle(seed=seed), {name: len(part) for name, part in parts.items()}
    )


def diversity(keep: float | None = None, *, min_new: float = 0.1, embed: Embed | None = None) -> Rule:
    """Drop rows that add little: by new word 3-grams, or, with an embedder, all but a spread-out choice.

    Args:
        keep: with `embed`: share of the rows that stays, chosen by greedy k-center (Sener and Savarese 2018).
        min_new: without: share of a row's word 3-grams that no earlier row has, 0 to 1.
        embed: texts to an array of shape (texts, width), such as `cleaning.embedder(model, tokenizer)` or a
            SentenceTransformer's `encode`.
    """
    if (embed is None) != (keep is None):
        raise ConfigError("diversity wants embed= and keep= together, or neither.")
    if embed is not None and keep is not None:
        share, encode = keep, embed
        return Rule(
            "diversity",
            f"rows close to one of the {share:.0%} that spread furthest (k-center)",
            whole=lambda examples: _k_center(Texts(examples), share, encode),
        )
    return Rule(
        "diversity",
        f"rows of whose word 3-grams under {min_new:.0%} are new",
        whole=lambda e: _new_grams(Texts(e), min_new),
    )


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Share of distinct word n-grams among all of them, 0 to 1 (Li et al. 2016); longer sets score lower."""
    seen: set[int] = set()
    total = 0
    for text in texts:
        grams = _grams(text, n)
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else 0.0


def _new_grams(texts: Texts, min_new: float) -> Outcome:
    seen: set[int] = set()
    findings = {}
    for i, text in enumerate(texts):
        grams = set(_grams(text, 3))
        new = len(grams - seen) / len(grams) if grams else 1.0
        if new < min_new:
            findings[i] = Ruling(f"only {new:.0%} of its word 3-grams are new", new, min_new)
        else:
            seen |= grams
    return Outcome(findings, {"distinct 2-grams before": distinct_n(texts)})


def _k_center(texts: Texts, keep: float, embed: Embed) -> Outcome:
    """Greedy k-center: take the row furthest from all taken ones until enough are taken; starts at the most central."""
    import numpy as np

    if not 0 < keep <= 1:
        raise ConfigError(f"keep={keep!r} is outside 0 to 1 (share of the rows).")
    points = np.asarray(embed(list(texts)), dtype=np.float32)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
    nearest = points @ points[(chosen := [int(np.argmax(points @ points.mean(axis=0)))])[0]]
    center = np.full(len(points), chosen[0])
    if not np.isfinite(points).all():
        raise DataError("The embedder gave values that are no numbers (NaN or infinite).")
    free = np.ones(len(points), dtype=bool)
    free[chosen] = False
    while len(chosen) < round(keep * len(points)):
        chosen.append(int(np.argmin(np.where(free, nearest, np.inf))))
        free[chosen[-1]] = False
        likeness = points @ points[chosen[-1]]
        center = np.where(likeness > nearest, chosen[-1], center)
        nearest = np.maximum(nearest, likeness)
    taken = set(chosen)
    findings = {
        i: Ruling(
            f"cosine {nearest[i]:.2f} to a row that stays", float(nearest[i]), float(nearest.min()), int(center[i])
        )
        for i in range(len(points))
        if i not in taken
    }
    return Outcome(findings, {"least cosine to a row that stays": float(nearest.min())})


def _grams(text: str, n: int) -> list[int]:
    found = data.words(text)
    return [hash(tuple(found[i : i + n])) for i in range(len(found) - n + 1)]


def _groups(examples: Any, by: str) -> dict[Any, list[int]]:
    if by not in examples.column_names:
        raise DataError(f"There is no column {by!r} to balance; there are: {', '.join(examples.column_names)}.")
    groups: dict[Any, list[int]] = {}
    for i, label in enumerate(examples[by]):
        if isinstance(label, list | dict):
            raise DataError(f"The column {by!r} holds {type(label).__name__}s; balancing wants one label a row.")
        groups.setdefault(label, []).append(i)
    return groups


def _plain(examples: Any) -> Any:
    return examples.select_columns([name for name in ("messages", "tools") if name in examples.column_names])
