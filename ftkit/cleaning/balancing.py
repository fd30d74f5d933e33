"""Which rows a dataset should hold more or fewer of: balance of labels, diversity, and a share of general examples.

Knows columns and words; whether a row is any good is for `rules` to say.
"""

import random
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftkit import data, tables
from ftkit.cleaning.rules import Outcome, Rule, Ruling
from ftkit.data import Texts, combined, no_datasets_bars
from ftkit.errors import ConfigError, DataError, FtkitWarning


@tables.shown
@dataclass(frozen=True)
class Mixture:
    """Task examples with a share of general ones; a `source` column says which is which."""

    examples: Any
    counts: Mapping[str, int]

    @property
    def share(self) -> float:
        """Share of general examples, 0 to 1."""
        return self.counts["general"] / sum(self.counts.values())

    def _parts(self) -> list[tables.Table | str]:
        return [f"{self.counts['task']} task + {self.counts['general']} general rows: {self.share:.1%} general"]


def balance(by: str, *, at_most: int | None = None, ratio: float = 1.5, seed: int = 0) -> Rule:
    """Cap every label of the column `by`: drop a random choice of the rows of labels that have too many.

    A label may have `at_most` rows; by default `ratio` times the median label.
    """
    if at_most is not None and at_most < 1:
        raise ConfigError(f"at_most={at_most!r} would drop every row. Give at least 1.")

    def whole(examples: Any) -> Outcome:
        """Which rows of a label with too many go."""
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


def mix(task: Any, general: Any, share: float = 0.08, *, seed: int = 0) -> Mixture:
    """Add general examples until they are `share` of all rows: rehearsal, a usual remedy against forgetting.

    Five to ten per cent is often advised; no study has fixed the share (Kalra et al. 2026, arXiv:2601.16979). The
    rows come shuffled; columns other than `messages` and `tools` are left behind.

    Raises:
        ConfigError: a share outside 0 to 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share={share!r} is outside 0 to 1 (0.05 to 0.10 is usual).")
    wanted = round(share / (1 - share) * len(task))
    if wanted > len(general):
        asked = f"share={share:g} of {len(task)} task rows wants {wanted} general rows"
        warnings.warn(f"{asked}; there are {len(general)}, all are taken.", FtkitWarning, stacklevel=2)
    rows = sorted(random.Random(seed).sample(range(len(general)), min(wanted, len(general))))
    if not len(task):
        raise DataError("There are no task rows to mix general ones into. Was every row dropped?")
    parts = {"task": task, "general": general.select(rows)}
    named = []
    for name, part in parts.items():
        if len(part):
            kept = [column for column in ("messages", "tools") if column in part.column_names]
            with no_datasets_bars():
                named.append(part.select_columns(kept).add_column("source", [name] * len(part)))
    return Mixture(combined(named).shuffle(seed=seed), {name: len(part) for name, part in parts.items()})


def diversity(*, min_new: float = 0.1) -> Rule:
    """Drop rows that add little: those of whose word 3-grams less than `min_new`, 0 to 1, stand in no earlier row."""

    def whole(examples: Any) -> Outcome:
        """Which rows say nothing new."""
        seen: set[int] = set()
        findings = {}
        for i, text in enumerate(Texts(examples)):
            words = data.words(text)
            grams = {hash(gram) for gram in zip(words, words[1:], words[2:], strict=False)}
            new = len(grams - seen) / len(grams) if grams else 1.0
            if new < min_new:
                findings[i] = Ruling(f"only {new:.0%} of its word 3-grams are new", new, min_new)
            else:
                seen |= grams
        return Outcome(findings)

    return Rule("diversity", f"rows of whose word 3-grams under {min_new:.0%} are new", whole=whole)


def _groups(examples: Any, by: str) -> dict[Any, list[int]]:
    if by not in examples.column_names:
        raise DataError(f"There is no column {by!r} to balance; there are: {', '.join(examples.column_names)}.")
    groups: dict[Any, list[int]] = {}
    for i, label in enumerate(examples[by]):
        if isinstance(label, list | dict):
            raise DataError(f"The column {by!r} holds {type(label).__name__}s; balancing wants one label a row.")
        groups.setdefault(label, []).append(i)
    return groups
