"""Rules of cleaning: what a rule is, and those about duplicates, length and quality.

A rule judges; `clean` runs it and keeps the books.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftkit import data
from ftkit.chat import render
from ftkit.cleaning.scores import explain, heuristics
from ftkit.data import Texts, close_pairs, jaccard, text_of, word_shingles
from ftkit.errors import ConfigError, DataError

Score = Callable[[Sequence[Any]], Sequence[float | None]]

_BATCH = 1_000

_COMPARED = {"all": "prompt and answer", "prompt": "prompt", "answer": "answer"}

_FAR_TIMES = 4  # among rows of nearly equal length a far score is not yet a long row


@dataclass(frozen=True)
class Ruling:
    """What a rule says about one row."""

    reason: str
    score: float | None = None
    limit: float | None = None  # what the score was held against
    twin: int | None = None  # position of the row that stays in its place
    action: str = "drop"  # or "flag", "change"
    messages: list[dict[str, Any]] | None = None  # for "change": the new turns


@dataclass(frozen=True)
class Outcome:
    """What a rule that sees all rows says: findings by position, and figures worth reading."""

    findings: Mapping[int, Ruling]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """One rule. Exactly one of `row` and `whole` is set.

    `row()` gives a judge for one pass, called with `(position, row)` and silent (None) about rows that are fine.
    `whole(examples)` sees all rows that are left, as a Dataset, and speaks of their positions in it.
    """

    name: str
    about: str
    row: Callable[[], Callable[[int, Mapping[str, Any]], Ruling | None]] | None = None
    whole: Callable[[Any], Outcome] | None = None


def exact_duplicates() -> Rule:
    """Drop rows whose turns are the same as an earlier row's, up to case, spaces, invisible characters and Unicode form."""

    def start() -> Callable[[int, Mapping[str, Any]], Ruling | None]:
        """A judge with a memory of its own, for one pass."""
        first: dict[bytes, int] = {}

        def judge(at: int, row: Mapping[str, Any]) -> Ruling | None:
            """Look at one row."""
            tools = str(row.get("tools") or "")
            turns = tools + "\x00".join(f"{m['role']}\x01{data.normalise(text_of([m]))}" for m in row["messages"])
            twin = first.setdefault(hashlib.blake2b(turns.encode("utf-8", "replace"), digest_size=16).digest(), at)
            return None if twin == at else Ruling("the same text, up to case and spaces", twin=twin)

        return judge

    return Rule(
        "exact duplicates", "the same turns as an earlier row, up to case, spaces and invisible characters", row=start
    )


def near_duplicates(
    threshold: float = data.THRESHOLD, *, on: str = "all", method: str = "auto", keep: str = "first"
) -> Rule:
    """Drop rows that share most word 5-grams with a row that stays; see `data.near_pairs`.

    Rows that are linked by near-duplicate pairs form a cluster, of which one row stays.

    Args:
        threshold: Jaccard similarity from which two rows are twins.
        on: compare "all" turns, the "prompt" or the "answer".
        method: as in `data.near_pairs`; or "simhash", for the lesson: fingerprints at most 3 bits apart, unverified,
            whatever the threshold.
        keep: of a cluster, the "first" row or the one with the "longest" answer.
    """
    if keep not in ("first", "longest"):
        raise ConfigError(f"keep={keep!r} is not 'first' or 'longest'.")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold!r} is outside 0 to 1 (Jaccard similarity of word 5-grams).")

    def whole(examples: Any) -> Outcome:
        """Look at all rows that are left."""
        texts = Texts(examples, on)
        found = close_pairs(texts) if method == "simhash" else data.near_pairs(texts, threshold, method=method)
        direct = {(p.first, p.second): p.similarity for p in found.pairs}
        linked = sorted({i for p in found.pairs for i in (p.first, p.second)})
        findings = {}
        for i, twin in _representatives(found.clusters(), linked, keep, examples).items():
            if i != twin:
                alike = direct.get((min(i, twin), max(i, twin)))
                chained = "" if alike is not None else ", linked through others"
                alike = jaccard(word_shingles(texts[i]), word_shingles(texts[twin])) if alike is None else alike
                findings[i] = Ruling(f"{alike:.0%} alike{chained}", alike, found.threshold, twin)
        notes: dict[str, Any] = {"method": found.method, "pairs compared": found.compared}
        return Outcome(findings, notes | ({"comparisons skipped": found.skipped} if found.skipped else {}))

    return Rule(
        "near-duplicates",
        f"word 5-grams overlap with another row's by {threshold:.0%} or more (Jaccard; {_COMPARED[on]})",
        whole=whole,
    )


def _representatives(labels: Sequence[int], linked: Sequence[int], keep: str, examples: Any) -> dict[int, int]:
    """For each row of a cluster the row that stays."""
    members: dict[int, list[int]] = {}
    for i in linked:
        members.setdefault(labels[i], []).append(i)
    if keep == "longest":
        return {
            i: max(group, key=lambda j: (len(text_of(examples[j]["messages"], "answer")), -j))
            for group in members.values()
            for i in group
        }
    return {i: group[0] for group in members.values() for i in group}


def length(
    tokenizer: Any = None, *, max_length: int = 2048, min_answer_words: int = 2, outlier: float | None = 5.0
) -> Rule:
    """Drop rows that are too long to be trained whole, answers of a word, and lengths far from all others.

    Args:
        tokenizer: counts tokens under its chat template; without one, words are counted (a token is about 3/4 of one).
        max_length: longer rows would lose the end of their answer, and with it the stop token.
        min_answer_words: 1 keeps the one-word answers of a classification task.
        outlier: modified z-score of the logarithm of the length (Iglewicz and Hoaglin 1993 take 3.5 for normal data;
            the length of text has longer tails) above which a row is dropped if it is also over four times the median; None
            keeps them.
    """

    def whole(examples: Any) -> Outcome:
        """Look at all rows that are left."""
        import numpy as np

        unit = "tokens" if tokenizer is not None else "words"
        sizes = np.array(_sizes(examples, tokenizer), dtype=np.float64)
        logs = np.log(np.maximum(sizes, 1))
        middle = float(np.median(logs))
        spread = max(float(np.median(np.abs(logs - middle))), 0.05)  # of equal lengths every other one would be far off
        z = 0.6745 * (logs - middle) / spread
        findings: dict[int, Ruling] = {}
        for i, answer in enumerate(Texts(examples, "answer")):
            count = len(data.words(answer)) if len(answer) < 40 * min_answer_words else min_answer_words
            if count < min_answer_words:
                findings[i] = Ruling(f"the answer has {count} words: {answer[:30]!r}", count, min_answer_words)
            elif sizes[i] > max_length:
                findings[i] = Ruling(f"{sizes[i]:,.0f} {unit}, beyond max_length", float(sizes[i]), max_length)
            elif outlier is not None and z[i] > outlier and (times := sizes[i] / np.exp(middle)) > _FAR_TIMES:
                findings[i] = Ruling(f"{sizes[i]:,.0f} {unit}, {times:.0f} times the median", float(z[i]), outlier)
        notes = {f"median {unit}": float(np.exp(middle)), "share beyond max_length": float((sizes > max_length).mean())}
        return Outcome(findings, notes)

    about = f"answers under {min_answer_words} words, rows over {max_length} {'tokens' if tokenizer is not None else 'words'}, far outliers"
    return Rule("length", about, whole=whole)


def _sizes(examples: Any, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return [len(data.words(text)) for text in Texts(examples)]

    sizes: list[int] = []
    for start in range(0, len(examples), _BATCH):
        texts = []
        for number, row in enumerate(examples.select(range(start, min(start + _BATCH, len(examples)))), start + 1):
            try:
                texts.append(render(row, tokenizer))
            except DataError as error:
                raise DataError(f"Row {number} of those that are left: {error}") from error
        sizes += map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    return sizes


def quality(
    score_fn: Score | None = None, *, minimum: float | None = None, keep: float | None = None, seed: int = 0
) -> Rule:
    """Drop the rows that a score calls worst: by default heuristics, which name the defect.

    Args:
        score_fn: messages of many rows to one score each, higher is better, None where there is none: see `scoring`, `rater`.
        minimum: drop scores below it; 0.75 for the heuristics, where one plain defect suffices.
        keep: instead, keep this share of the scored rows (more where scores tie; rows without a score stay). The notes show the mean score of a random selection of the same size:
            a filter is worth its cost only if training on its choice beats training on that (`cleaning.select`).
        seed: of that random selection.
    """
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"keep={keep!r} is outside 0 to 1 (share of the rows).")
    if score_fn is None and keep is None:
        return _heuristic_quality(0.75 if minimum is None else minimum)
    if (minimum is None) == (keep is None):
        raise ConfigError("quality wants either minimum=, a score, or keep=, a share of the rows.")

    def whole(examples: Any) -> Outcome:
        """Look at all rows that are left."""
        scores = [s for rows in _in_turn(examples) for s in _scored(score_fn or _heuristics(), rows)]
        known = sorted(s for s in scores if s is not None)
        if not known:
            return Outcome({}, {"rows without a score": len(scores)})
        limit = minimum if minimum is not None else known[len(known) - max(1, round((keep or 1.0) * len(known)))]
        bad = {i: Ruling(f"score {s:.2f}", s, limit) for i, s in enumerate(scores) if s is not None and s < limit}
        return Outcome(
            bad, _against_random(known, len(known) - len(bad), seed) | {"rows without a score": scores.count(None)}
        )

    how = f"score below {minimum:g}" if minimum is not None else f"not among the best {keep:.0%} by score"
    return Rule("quality", how, whole=whole)


def _scored(score_fn: Score, rows: list[Any]) -> list[float | None]:
    scores = list(score_fn(rows))
    if len(scores) != len(rows):
        raise DataError(
            f"The score function gave {len(scores)} scores for {len(rows)} rows; wanted is one a row, None where there is none."
        )
    return [None if s is None or not math.isfinite(s) else float(s) for s in scores]


def _in_turn(examples: Any, size: int = 10_000) -> Iterator[list[Any]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]["messages"]


def _against_random(scores: Sequence[float], size: int, seed: int) -> dict[str, float]:
    import random

    draw = random.Random(seed).sample(list(scores), size)
    best = sorted(scores)[len(scores) - size :]
    return {"mean score kept": sum(best) / max(size, 1), "mean score of a random selection": sum(draw) / max(size, 1)}


def _heuristics() -> Score:

    return heuristics


def _heuristic_quality(minimum: float) -> Rule:
    def start() -> Callable[[int, Mapping[str, Any]], Ruling | None]:
        """A judge with a memory of its own, for one pass."""

        def judge(at: int, row: Mapping[str, Any]) -> Ruling | None:
            score = heuristics([row["messages"]])[0]
            return Ruling("; ".join(explain(row["messages"])), score, minimum) if score < minimum else None

        return judge

    return Rule("quality", f"obvious defects of the answer (heuristic score below {minimum:g})", row=start)
