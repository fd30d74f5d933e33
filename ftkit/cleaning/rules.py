"""Rules: what one is, and those about duplicates, length and quality.

A rule judges rows and knows no report; `clean` runs it and keeps the books.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ftkit import data
from ftkit.chat import render
from ftkit.cleaning.scores import ScoreFn, explain, heuristics, messages_of, scored
from ftkit.data import Texts, close_pairs, jaccard, text_of, word_shingles
from ftkit.errors import ConfigError, DataError

Judge = Callable[[int, Mapping[str, Any]], "Ruling | None"]

_BATCH, _SCORED_AT_ONCE = 1_000, 10_000
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
    row: Callable[[], Judge] | None = None
    whole: Callable[[Any], Outcome] | None = None


def exact_duplicates() -> Rule:
    """Drop rows that say what an earlier row says, up to case, spaces, invisible characters and Unicode form."""

    def start() -> Judge:
        """A judge that has seen no row yet."""
        first: dict[bytes, int] = {}

        def judge(at: int, row: Mapping[str, Any]) -> Ruling | None:
            """Whether an earlier row is the same."""
            tools = str(row.get("tools") or "")
            turns = [f"{m['role']}\x01{data.normalise(text_of([m]))}" for m in row["messages"]]
            text = tools + "\x00".join(turns)
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            twin = first.setdefault(digest, at)
            return None if twin == at else Ruling("the same text, up to case and spaces", twin=twin)

        return judge

    about = "the same turns as an earlier row, up to case, spaces and invisible characters"
    return Rule("exact duplicates", about, row=start)


def near_duplicates(threshold: float = data.THRESHOLD, *, on: str = "all", method: str = "auto") -> Rule:
    """Drop rows that share most word 5-grams with a row that stays; see `data.near_pairs`.

    Rows that are linked by near-duplicate pairs form a cluster, whose first row stays. `on` compares "all" turns, the
    "prompt" or the "answer". The method is that of `data.near_pairs`; or "simhash", for the lesson: fingerprints at
    most 3 bits apart, unverified, whatever the threshold.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold!r} is outside 0 to 1 (Jaccard similarity of word 5-grams).")

    def whole(examples: Any) -> Outcome:
        """Each row beside the earlier one that it repeats."""
        texts = Texts(examples, on)
        found = close_pairs(texts) if method == "simhash" else data.near_pairs(texts, threshold, method=method)
        direct = {(p.first, p.second): p.similarity for p in found.pairs}
        labels, findings = found.clusters(), {}
        for i in sorted(set(itertools.chain.from_iterable(direct))):
            stays = labels[i]
            if i == stays:
                continue
            alike, how = direct.get((stays, i)), ""
            if alike is None:
                alike, how = jaccard(word_shingles(texts[i]), word_shingles(texts[stays])), ", linked through others"
            findings[i] = Ruling(f"{alike:.0%} alike{how}", alike, found.threshold, stays)
        notes: dict[str, Any] = {"method": found.method, "pairs compared": found.compared}
        return Outcome(findings, notes | ({"comparisons skipped": found.skipped} if found.skipped else {}))

    about = f"word 5-grams overlap with another row's by {threshold:.0%} or more (Jaccard; {_COMPARED[on]})"
    return Rule("near-duplicates", about, whole=whole)


def length(
    tokenizer: Any = None, *, max_length: int = 2048, min_answer_words: int = 2, outlier: float | None = 5.0
) -> Rule:
    """Drop rows that are too long to be trained whole, answers of a word, and lengths far from all others.

    `tokenizer` counts tokens under its chat template; without one, words are counted (a token is about 3/4 of one).
    Rows over `max_length` would lose the end of their answer, and with it the stop token; `min_answer_words=1` keeps
    the one-word answers of a classification task. `outlier` is the modified z-score of the logarithm of the length
    above which a row is dropped if it is also over four times the median; None keeps them. (Iglewicz and Hoaglin 1993
    take 3.5 for normal data; the length of text has longer tails.)
    """
    unit = "words" if tokenizer is None else "tokens"

    def whole(examples: Any) -> Outcome:
        """Rows far longer or shorter than the others."""
        import numpy as np

        sizes = np.array(_sizes(examples, tokenizer), dtype=np.float64)
        logs = np.log(np.maximum(sizes, 1))
        middle = float(np.median(logs))
        spread = max(float(np.median(np.abs(logs - middle))), 0.05)  # of equal lengths every other one would be far off
        z = 0.6745 * (logs - middle) / spread
        findings: dict[int, Ruling] = {}
        times = sizes / np.exp(middle)
        far = (z > (math.inf if outlier is None else outlier)) & (times > _FAR_TIMES)
        for i, answer in enumerate(Texts(examples, "answer")):
            count = len(data.words(answer)) if len(answer) < 40 * min_answer_words else min_answer_words
            if count < min_answer_words:
                findings[i] = Ruling(f"the answer has {count} words: {answer[:30]!r}", count, min_answer_words)
            elif sizes[i] > max_length:
                findings[i] = Ruling(f"{sizes[i]:,.0f} {unit}, beyond max_length", float(sizes[i]), max_length)
            elif far[i]:
                findings[i] = Ruling(f"{sizes[i]:,.0f} {unit}, {times[i]:.0f} times the median", float(z[i]), outlier)
        notes = {f"median {unit}": float(np.exp(middle)), "share beyond max_length": float((sizes > max_length).mean())}
        return Outcome(findings, notes)

    about = f"answers under {min_answer_words} words, rows over {max_length} {unit}, far outliers"
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
    score_fn: ScoreFn | None = None, *, minimum: float | None = None, keep: float | None = None, seed: int = 0
) -> Rule:
    """Drop the rows that a score calls worst: by default heuristics, which name the defect.

    `score_fn` takes the messages of many rows and gives one score each, higher is better, None where there is none:
    `ifd`, `rate` or one of your own; scores below `minimum` go, 0.75 for the heuristics, where one plain defect
    suffices. Instead of it, `keep` is a share of the scored rows (more where scores tie; rows without a score stay).
    The notes show the mean score of a random selection of the same size, drawn with `seed`: a filter is worth its cost
    only if training on its choice beats training on that (`cleaning.select`).
    """
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"keep={keep!r} is outside 0 to 1 (share of the rows).")
    if score_fn is None and keep is None:
        limit = 0.75 if minimum is None else minimum

        def judge(at: int, row: Mapping[str, Any]) -> Ruling | None:
            score = heuristics([row["messages"]])[0]
            return Ruling("; ".join(explain(row["messages"])), score, limit) if score < limit else None

        return Rule("quality", f"obvious defects of the answer (heuristic score below {limit:g})", row=lambda: judge)
    if (minimum is None) == (keep is None):
        raise ConfigError("quality wants either minimum=, a score, or keep=, a share of the rows.")

    def whole(examples: Any) -> Outcome:
        """Rows with a low score."""
        scores: list[float | None] = []
        for start in range(0, len(examples), _SCORED_AT_ONCE):
            part = examples.select(range(start, min(start + _SCORED_AT_ONCE, len(examples))))
            scores += scored(score_fn or heuristics, messages_of(part))
        notes: dict[str, float] = {"rows without a score": scores.count(None)}
        known = sorted(s for s in scores if s is not None)
        if not known:
            return Outcome({}, notes)
        limit = minimum if minimum is not None else known[len(known) - max(1, round((keep or 1.0) * len(known)))]
        bad = {i: Ruling(f"score {s:.2f}", s, limit) for i, s in enumerate(scores) if s is not None and s < limit}
        size = len(known) - len(bad)
        drawn = random.Random(seed).sample(known, size)
        kept, by_chance = sum(known[len(bad) :]) / max(size, 1), sum(drawn) / max(size, 1)
        return Outcome(bad, {"mean score kept": kept, "mean score of a random selection": by_chance} | notes)

    how = f"score below {minimum:g}" if minimum is not None else f"not among the best {keep:.0%} by score"
    return Rule("quality", how, whole=whole)
