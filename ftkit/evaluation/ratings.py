"""Ratings that people gave, on file: what was rated, what was said of it, and pairs to train on.

In pairs the value is a preference: 1 for the model (the second system), 0 for the baseline (the first), 0.5 for a tie
and where both are bad. On the scale it is 1 to 5 of one answer. How far raters agree is the business of `agreements`.
"""

import hashlib
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from ftkit import files, tables
from ftkit.errors import DataError
from ftkit.evaluation.statistics import Score, interval, mean_within
from ftkit.tables import Table

LOWEST, HIGHEST = 1, 5
_PROBLEMS_SHOWN = 8

Kind = Literal["pair", "scale"]
Systems = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A prompt (a text or messages) and one answer a system."""

    id: str
    prompt: Any
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """What is rated."""

    systems: tuple[str, ...]
    items: tuple[Item, ...]

    @classmethod
    def of(cls, systems: Systems) -> "Sample":
        """From rows with `prompt`, `answer` and optionally `id`, or an `EvalReport`, by system; DataError lists all."""
        if not isinstance(systems, Mapping) or not systems:
            raise DataError("Wanted the answers by system: {'base': before.rows, 'tuned': after.rows}.")
        rows: dict[str, Any] = {name: getattr(given, "rows", given) for name, given in systems.items()}
        if odd := [name for name, given in rows.items() if not isinstance(given, Sequence)]:
            raise DataError(f"{odd[0]!r} is {type(rows[odd[0]]).__name__}: rows with prompt and answer are wanted.")
        found = {name: _by_id(name, listed) for name, listed in rows.items()}
        problems = list(itertools.chain.from_iterable(listed for _, listed in found.values()))
        first, *others = rows
        expected = found[first][0]
        for name in others:
            if found[name][0].keys() != expected.keys():
                unlike = sorted(found[name][0].keys() ^ expected.keys())
                problems.append(f"{first!r} and {name!r} did not answer the same prompts: {_listed(unlike)}")
                continue
            other = [key for key, row in found[name][0].items() if row.get("prompt") != expected[key].get("prompt")]
            if other:
                problems.append(f"{first!r} and {name!r} have other prompts under the same id: {_listed(other)}")
        if not any(rows.values()):
            problems.append("there are no answers")
        _refuse("These answers cannot be rated", problems)
        items = []
        for key, row in expected.items():
            items.append(Item(key, row["prompt"], tuple(found[name][0][key]["answer"] for name in rows)))
        return cls(tuple(rows), tuple(items))

    @cached_property
    def digest(self) -> str:
        """Of names, prompts and answers, in order: ratings of another sample carry another one."""
        written = json.dumps([self.systems, [asdict(item) for item in self.items]], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:16]


def _by_id(name: str, rows: Sequence[Any]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Rows of a system by their id (their number, where they have none), and what is wrong with them."""
    found: dict[str, Mapping[str, Any]] = {}
    problems = []
    for number, row in enumerate(rows, 1):
        where = f"{name!r} row {number}"
        if not isinstance(row, Mapping):
            problems.append(f"{where} is {type(row).__name__}, wanted a row with prompt and answer")
            continue
        key = str(row.get("id", number))
        if not isinstance(row.get("answer"), str):
            problems.append(f"{where}: answer is {row.get('answer')!r}, wanted a text")
        asked = row.get("prompt")
        if not isinstance(asked, str) and not _are_messages(asked):
            problems.append(f"{where}: prompt is {asked!r}, wanted a text or messages")
        if key in found:
            problems.append(f"{where}: id {key!r} stands there twice")
        found[key] = row
    return found, problems


def _are_messages(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(turn, Mapping) for turn in prompt)


@dataclass(frozen=True)
class Rating:
    """One rating: of an item in pairs (`system` is empty, `value` the preference), or of one answer on the scale."""

    rater: str
    item: str
    system: str
    value: float
    choice: str = ""
    note: str = ""
    seconds: float | None = None


@tables.shown
@dataclass(frozen=True)
class Ratings:
    """Ratings on file; of what somebody rated twice the last counts.

    Args:
        rows: the ratings.
        systems: in order: in pairs the baseline and the model; empty where the sample is not known.
        items: all ids of the sample, in order; empty where it is not known.
        changed: earlier ratings that later ones replaced.
        cut: lines that cannot be read, as a killed program leaves them.
    """

    rows: tuple[Rating, ...]
    systems: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    changed: int = 0
    cut: int = 0

    @property
    def kind(self) -> Kind:
        """How the sample was rated."""
        return "scale" if any(row.system for row in self.rows) else "pair"

    def by_rater(self) -> dict[str, dict[tuple[str, str], float]]:
        """`{rater: {(item, system): value}}`, as `agreement` reads it."""
        found: dict[str, dict[tuple[str, str], float]] = {}
        for row in self.rows:
            found.setdefault(row.rater, {})[row.item, row.system] = row.value
        return found

    def preferences(self) -> dict[str, float | None]:
        """`{item: preference for the model}`, 0 to 1, averaged over raters; None of the sample's items without one.

        `list(ratings.preferences().values())` is what `win_rate` reads.

        Raises:
            DataError: the answers were rated on the scale.
        """
        if self.kind == "scale":
            raise DataError("These are ratings from 1 to 5, not preferences: means() says what each system got.")
        return dict.fromkeys(self.items) | self._means_of("")

    def means(self) -> dict[str, Score]:
        """`{system: mean rating}` from 1 to 5, with its interval over items (raters of one item are averaged first)."""
        found = {}
        for system in dict.fromkeys(row.system for row in self.rows if row.system):
            found[system] = mean_within(
                [(value, item) for item, value in self._means_of(system).items()], LOWEST, HIGHEST
            )
        return found

    def _means_of(self, system: str) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for row in self.rows:
            if row.system == system:
                values.setdefault(row.item, []).append(row.value)
        return {item: statistics.fmean(given) for item, given in values.items()}

    def _parts(self) -> list[Table | str]:
        each = len(self.items) * (len(self.systems) if self.kind == "scale" else 1)
        of = f" of {each}" if each else ""
        progress = [(rater, f"{len(given)}{of}") for rater, given in self.by_rater().items()]
        parts: list[Table | str] = [Table(("rater", "rated"), progress)] if progress else ["Nothing is rated yet."]
        if progress:
            parts += self._pairs() if self.kind == "pair" else self._scale()
        if self.changed or self.cut:
            parts.append(f"{self.changed} earlier ratings were replaced; {self.cut} lines that were cut are left out.")
        return parts

    def _pairs(self) -> list[Table | str]:
        baseline, model = self.systems or ("the baseline", "the model")
        counts = Counter("tie" if row.value == 0.5 else str(row.value > 0.5) for row in self.rows)
        both_bad = sum(row.choice == "both bad" for row in self.rows)
        head = (f"{model} preferred", f"{baseline} preferred", "tie", "both bad")
        cells = (counts["True"], counts["False"], counts["tie"] - both_bad, both_bad)
        preferred = interval(list(self._means_of("").values()))
        sides = Counter(row.choice for row in self.rows)
        left, decided = sides["left"], sides["left"] + sides["right"]
        said = [f"Preference for {model}: {preferred} (a tie is a half)."]
        if decided:
            said.append(f"The left side was preferred in {left} of {decided} decided pairs; sides were drawn by lot.")
        return [Table(head, [cells]), *said]

    def _scale(self) -> list[Table | str]:
        rows = []
        for system, mean in self.means().items():
            given = sum(row.system == system for row in self.rows)
            rows.append((system, f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]", given))
        return [Table(("system", "mean of 1 to 5 [95 %]", "ratings"), rows)]


def read_ratings(path: str | Path | Sequence[str | Path], systems: Systems | None = None) -> Ratings:
    """Read files of ratings, one JSON object a line; of a folder all `*.jsonl`. No front end is needed.

    A line holds `item` and either `preference` (0 to 1, for the model) or `system` and `rating` (1 to 5); optionally
    `rater` (else the file's name), `choice`, `note`, `seconds`, and `sample`, the digest of what was rated. Lines that
    are no JSON are what a killed program leaves: they are passed over and counted.

    Args:
        path: a file, a folder or several of either.
        systems: what was rated, as `rating_form` takes it; ratings of anything else are then refused.

    Raises:
        DataError: lists all that is wrong: another sample, unknown ids, values out of range or not a number.
    """
    sample = None if systems is None else Sample.of(systems)
    given = [path] if isinstance(path, str | Path) else list(path or ())
    found: list[Path] = []
    for place in map(Path, given):
        found += sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if missing := [str(place) for place in found if not place.is_file()]:
        raise DataError(f"No file {', '.join(missing)}. rating_form writes one, or give the path of yours.")
    return read_files(found, sample)


def read_files(paths: Sequence[Path], sample: Sample | None) -> Ratings:
    """The ratings in these files; DataError lists all that is wrong."""
    kept: dict[tuple[str, str, str], Rating] = {}
    problems: list[str] = []
    samples, changed, cut = set[str](), 0, 0
    for path in paths:
        read = 0
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                cut += 1
                continue
            read += 1
            rating, wrong = rating_of(row, path.stem, sample)
            if rating is None:
                problems.append(f"{path.name} line {number}: {wrong}")
                continue
            samples |= {str(row["sample"])} if row.get("sample") else set()
            key = (rating.rater, rating.item, rating.system)
            changed += key in kept
            kept[key] = rating
        if not read and any(line.strip() for line in lines[:-1]):
            problems.append(f"{path.name} holds no line of JSON: it is no file of ratings")
    if len(samples) > 1:
        problems.append(f"they are of {len(samples)} different samples: read those of one sample together")
    if len({bool(rating.system) for rating in kept.values()}) > 1:
        problems.append("some are preferences and some are ratings from 1 to 5: read either alone")
    _refuse("These ratings cannot be used", problems)
    rows = tuple(kept.values())
    if sample is None:
        return Ratings(rows, changed=changed, cut=cut)
    items = [item.id for item in sample.items]
    rows = tuple(sorted(rows, key=lambda rating: items.index(rating.item)))
    return Ratings(rows, sample.systems, tuple(items), changed, cut)


def rating_of(row: Any, rater: str, sample: Sample | None) -> tuple[Rating | None, str]:
    """The rating on a line, or None and what is wrong with it."""
    if not isinstance(row, dict) or "item" not in row or not {"preference", "rating"} & row.keys():
        return None, "wanted an object with item and preference, or with item, system and rating"
    item, on_scale = str(row["item"]), "rating" in row
    system = str(row.get("system", "")) if on_scale else ""
    name, low, high = ("rating", LOWEST, HIGHEST) if on_scale else ("preference", 0, 1)
    value = row[name]
    wrong = []
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        wrong.append(f"{name} {value!r} of item {item!r} is no number from {low} to {high}")
    if on_scale and not system:
        wrong.append(f"item {item!r} has a rating and no system")
    if sample is not None:
        other = row.get("sample", sample.digest)
        if other != sample.digest:
            given = "other names, another order of systems, other prompts or other answers"
            return None, f"is of another sample ({other}, and this is {sample.digest}): {given}"
        if item not in {known.id for known in sample.items}:
            wrong.append(f"the sample has no item {item!r}")
        if system and system not in sample.systems:
            wrong.append(f"the sample has no system {system!r}")
    if wrong:
        return None, "; ".join(wrong)
    seconds = row.get("seconds")
    spent = float(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else None
    choice, note = (str(row.get(name) or "") for name in ("choice", "note"))
    return Rating(str(row.get("rater") or rater), item, system, float(value), choice, note, spent), ""


@tables.shown
@dataclass(frozen=True)
class SavedPreferences:
    """A file of chosen and rejected answers, and how many items did not make a row."""

    path: Path
    pairs: int
    ties: int
    unscored: int

    def _parts(self) -> list[Table | str]:
        head = ("chosen and rejected", "ties, left out", "without a verdict, left out")
        return [Table(head, [(self.pairs, self.ties, self.unscored)]), f"Saved in {self.path}."]


def save_preferences(
    preferences: Mapping[str, float | None] | Sequence[float | None], systems: Systems, path: str | Path
) -> SavedPreferences:
    """Write the pairs of which one answer was preferred as `prompt`, `chosen`, `rejected` messages, one row a line.

    TRL's `DPOTrainer` reads these rows as they are; `load_examples` trains the chosen ones with
    `mapping={"prompt": "prompt", "answer": "chosen"}`. A tie, and a pair of equal answers, teaches nothing and is
    left out.

    Args:
        preferences: people's (`ratings.preferences()`) or a judge's: for the model, 0 to 1, by item or in order; None
            where there is no verdict.
        systems: what was compared, as `rating_form` takes it: the baseline, then the model.
        path: of the JSONL file.

    Raises:
        DataError: unknown ids, another number of items, values outside 0 to 1; lists all.
    """
    sample = Sample.of(systems)
    problems = []
    if len(sample.systems) != 2:
        problems.append(f"preferences are between two systems, and here are {len(sample.systems)}")
    if not isinstance(preferences, Sized):
        raise DataError(
            f"Preferences are {type(preferences).__name__}: one number an item is wanted, in order or by id."
        )
    ids = [item.id for item in sample.items]
    by_id = dict(preferences) if isinstance(preferences, Mapping) else dict(zip(ids, preferences, strict=False))
    if not isinstance(preferences, Mapping) and len(preferences) != len(ids):
        problems.append(f"there are {len(preferences)} preferences and {len(ids)} items")
    if unknown := sorted(map(str, by_id.keys() - set(ids))):
        problems.append(f"the sample has no item {_listed(unknown)}")
    for key, value in by_id.items():
        if value is not None and not (isinstance(value, SupportsFloat) and 0 <= value <= 1):
            problems.append(f"item {key!r}: {value!r} is no number from 0 to 1")
    _refuse("These preferences cannot be saved", problems)
    rows, ties, unscored = [], 0, 0
    for item in sample.items:
        value = by_id.get(item.id)
        if value is None:
            unscored += 1
            continue
        baseline, model = item.answers
        if value == 0.5 or baseline == model:
            ties += 1
            continue
        chosen, rejected = (model, baseline) if value > 0.5 else (baseline, model)
        prompt = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
        answers = {"chosen": _said(chosen), "rejected": _said(rejected)}
        rows.append({"prompt": prompt, **answers, "id": item.id, "preference": float(value)})
    return SavedPreferences(files.write_jsonl(path, rows), len(rows), ties, unscored)


def _said(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _refuse(what: str, problems: Sequence[str]) -> None:
    """Raise a DataError with all problems, where there are any."""
    if problems:
        rest = len(problems) - _PROBLEMS_SHOWN
        more = [f"and {rest:,} more"] if rest > 0 else []
        raise DataError("\n- ".join([f"{what}:", *problems[:_PROBLEMS_SHOWN], *more]))
