"""Scores of texts, and how far chance may have moved their mean. Knows no model; formulas are the field's."""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ftkit.data import parse_calls
from ftkit.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
RESAMPLES = 2_000


@dataclass(frozen=True)
class Score:
    """A mean (a share, or a difference of shares) with its 95 % interval (bootstrap over prompts, 2,000 resamples)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.0%}, {self.high:.0%}]"


def squad_normalise(text: str) -> str:
    """Lower-case, without punctuation and articles, single spaces (SQuAD v1.1's evaluation script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_words(text: str) -> str:
    """Only outer blanks and line-end blanks are forgiven: for output whose format is the task."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def exact_match(
    prediction: str, references: str | Sequence[str], normalise: Callable[[str], str] = squad_normalise
) -> float:
    """1.0 if the prediction equals any reference after normalisation, else 0.0. Two empty texts are equal.

    Where a reference calls functions, the same calls must be made in the same order: names and arguments are compared
    as objects, and what is said beside them does not count.
    """
    made = calls_in(prediction)
    for reference in _references(references):
        wanted = calls_in(reference)
        if made == wanted if wanted else normalise(prediction) == normalise(reference):
            return 1.0
    return 0.0


def answered(text: str) -> str:
    """A text without the reasoning before the answer."""
    return text.rpartition("</think>")[2].lstrip("\n")


def calls_in(text: str) -> list[str]:
    """The calls that a text makes, as JSON with sorted keys: in `<tool_call>` tags, or JSON and nothing else."""
    tagged, calls = _CALL.findall(text), []
    for block in tagged or [text.strip().removeprefix("[TOOL_CALLS]")]:
        spelt = block if '"arguments"' in block else block.replace('"parameters"', '"arguments"')
        try:
            made = parse_calls(spelt) if '"arguments"' in spelt else []
        except DataError:
            made = []
        said = [json.dumps(call["function"], sort_keys=True) for call in made]
        calls += said or (["unreadable" + block] if tagged else [])
    return calls


def token_f1(
    prediction: str, references: str | Sequence[str], normalise: Callable[[str], str] = squad_normalise
) -> float:
    """Best F1 of shared words over the references, 0 to 1. Two empty texts score 1, one empty text 0."""
    return max(_f1(normalise(prediction).split(), normalise(r).split()) for r in _references(references))


def interval(values: Sequence[float], seed: int = 0) -> Score:
    """Mean with its 95 % percentile bootstrap interval (Efron 1979); for all-equal 0/1 values Wilson's interval.

    The bootstrap of twenty zeros is the point zero, which claims too much: there Wilson's score interval stands in.
    """
    import numpy as np

    array = np.asarray(values, dtype=float)
    if len(array) and np.all(array == array[0]) and array[0] in (0.0, 1.0):
        low, high = _wilson(int(array.sum()), len(array))
        return Score(float(array[0]), low, high)
    draws = np.random.default_rng(seed).integers(0, len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return Score(float(array.mean()), float(low), float(high))


def difference_interval(values: Sequence[float]) -> Score:
    """Interval of a mean paired difference, between -1 and 1; where all pairs agree Wilson's, on both sides of 0."""
    if values and all(v == values[0] for v in values) and values[0] in (-1.0, 0.0, 1.0):
        low, high = _wilson(0 if values[0] == 0 else len(values), len(values))
        return {0.0: Score(0.0, -high, high), 1.0: Score(1.0, low, high), -1.0: Score(-1.0, -high, -low)}[values[0]]
    return interval(values)


def _wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson (1927): an interval for a share that stays honest at 0 and 1."""
    p = hits / n
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle, scale = p + z * z / (2 * n), 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * shared / (len(predicted) + len(wanted))


def _references(references: str | Sequence[str]) -> Sequence[str]:
    listed = [references] if isinstance(references, str) else list(references)
    if not listed:
        raise DataError("An exact match needs at least one reference.")
    return listed
