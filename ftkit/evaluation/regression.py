"""Did fine-tuning lose something? A verdict on reports of before and after that a build can hang on.

A suite fails when its loss is both more than chance makes (one-sided exact test on the pairs, Holm over all suites) and
more than is allowed (the threshold, or the noise floor where that is higher). It passes as proved when the whole
interval lies above what is allowed; in between nobody can tell, and that is said. Knows reports, and no model.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from ftkit import files, tables
from ftkit.errors import DataError, GateFailed
from ftkit.evaluation import statistics
from ftkit.evaluation.comparing import both_scored, spelt_p, unlike
from ftkit.evaluation.scoring import EvalReport
from ftkit.evaluation.statistics import Score
from ftkit.runs import Run
from ftkit.tables import Table

Reports = EvalReport | Mapping[str, EvalReport]
VERDICT = "eval/verdict.json"
_FLIPS = 9_999
_SHOWN = 10
_STATES = {"lost": "✗ lost", "kept": "✓ kept", "unsure": "○ cannot tell"}


@dataclass(frozen=True)
class Item:
    """An item whose score changed, with both answers."""

    id: str
    prompt: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True)
class Change:
    """What became of one suite by one metric.

    Args:
        suite: its name.
        metric: by which it is scored.
        items: scored on both sides.
        unscored: left out, because one side has no score.
        before, after: mean scores.
        difference: after minus before, paired.
        lost, gained: items that scored less, or more.
        p: how often chance alone would lose at least so much; exact McNemar, one-sided (scores other than pass and
            fail, and several answers to a prompt: the sign-flip test).
        p_holm: the same, raised for the number of tests.
        allowed: the larger of threshold and noise floor.
        detectable: the smallest true loss that so many items show in four of five repeats; None where none does.
        state: "lost", "kept" or "unsure".
    """

    suite: str
    metric: str
    items: int
    unscored: int
    before: Score
    after: Score
    difference: Score
    lost: tuple[Item, ...]
    gained: tuple[Item, ...]
    p: float
    p_holm: float
    allowed: float
    detectable: float | None
    state: str

    def sentence(self) -> str:
        """What happened, in one sentence."""
        d, called = self.difference, f"{self.suite} ({self.metric})"
        moved = f"{100 * d.value:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        tested = f"{len(self.lost)} of {self.items} items lost, {len(self.gained)} gained, p {spelt_p(self.p_holm)}"
        if self.state == "lost":
            return f"{called} lost: {moved}; {tested}; {100 * self.allowed:.1f} points were allowed."
        if self.state == "kept":
            return f"{called} kept: {moved}; {tested}; a loss of {100 * self.allowed:.1f} points is ruled out."
        if self.detectable is None:
            few = f"{self.items} items are too few: even if all were lost, chance could not be ruled out."
        else:
            smallest = f"{100 * self.detectable:.0f} points"
            few = f"the smallest loss that so many items show in four of five repeats is {smallest}."
        return f"{called} cannot be told: {moved}; {tested}; {few}"

    def _row(self) -> tuple[Any, ...]:
        d = self.difference
        moved = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        counts = (len(self.lost), len(self.gained), spelt_p(self.p_holm), f"{100 * self.allowed:.1f}")
        scores = (f"{self.before.value:.1%}", f"{self.after.value:.1%}")
        return f"{self.suite} ({self.metric})", _STATES[self.state], self.items, *scores, moved, *counts


@tables.shown
@dataclass(frozen=True)
class GateReport:
    """Whether a model may go on, why, and which items it lost.

    Args:
        passed: no suite lost more than is allowed; with `strict` also none of which that cannot be told.
        changes: one a suite and metric.
        before, after: names of the systems.
        number_format: of the weights on both sides.
        digests: of each suite's prompts and references.
        threshold: the loss that is allowed, as a share.
        alpha: share of false alarms over all suites together.
        strict: whether "cannot tell" fails.
        run: name of the run that was judged; "" where none was named.
        adapter: digest of its adapter.
        data: digest of the data that it was trained on.
    """

    passed: bool
    changes: tuple[Change, ...]
    before: str
    after: str
    number_format: str
    digests: dict[str, str]
    threshold: float
    alpha: float
    strict: bool
    run: str = ""
    adapter: str = ""
    data: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence a suite, the lost ones first."""
        order = sorted(self.changes, key=lambda change: ("lost", "unsure", "kept").index(change.state))
        return tuple(change.sentence() for change in order)

    @property
    def lost(self) -> tuple[Item, ...]:
        """The items that the failing suites lost."""
        return tuple(itertools.chain.from_iterable(change.lost for change in self._failing()))

    def raise_if_failed(self) -> "GateReport":
        """Stop a notebook, a script or a test here unless the gate was passed.

        Raises:
            GateFailed: names what was lost, and the items.
        """
        if not self.passed:
            told = [f"- {item.id}: {tables.flat(item.prompt)[:120]}" for item in self.lost[:_SHOWN]]
            more = [f"- and {len(self.lost) - _SHOWN} more"] * (len(self.lost) > _SHOWN)
            listed = ["Items lost:", *told, *more] if told else []
            said = [change.sentence() for change in self._failing()]
            raise GateFailed("\n".join([f"{self.after} does not pass the gate.", *said, *listed]))
        return self

    def save(self, place: Run | str | Path) -> Path:
        """Write the verdict as JSON: into a run as `eval/verdict.json`, or to a path.

        Raises:
            DataError: the verdict is on another run.
        """
        if not isinstance(place, Run):
            return files.write_json(place, asdict(self))
        self._refuse_other(place)
        path = files.write_json(place / VERDICT, asdict(self))
        place.finish("gate", passed=self.passed, suites=len(self.changes), lost=len(self.lost))
        return path

    def _failing(self) -> list[Change]:
        failing = ("lost", "unsure") if self.strict else ("lost",)
        return [change for change in self.changes if change.state in failing]

    def _refuse_other(self, run: Run) -> None:
        bound, here = {"adapter": self.adapter, "data": self.data}, binding(run)
        other = [key for key in bound if bound[key] != here[key]]
        if other:
            told = "; ".join(f"{key} {bound[key] or 'unknown'}, here {here[key] or 'unknown'}" for key in other)
            raise DataError(
                f"This verdict is on {self.run or 'no run'}, and not on {run.path.name} as it is now ({told}). "
                f"Judge it anew: python -m ftkit evaluate {run.path} --gate"
            )

    def _parts(self) -> list[Table | str]:
        scores = ("before", "after", "change, points [95 %]", "lost", "gained", "p", "allowed")
        head = ("suite", "verdict", "items", *scores)
        word = "PASSED" if self.passed else "FAILED"
        parts: list[Table | str] = [
            Table(head, [change._row() for change in self.changes]),
            f"Gate {word}: {self.after} against {self.before}, {self.number_format}.",
            *self.reasons,
        ]
        parts += [
            f"{change.suite}: {change.unscored} items are without a score on one side and were left out."
            for change in self.changes
            if change.unscored
        ]
        if self.lost:
            rows = [(i.id, i.prompt, i.wanted, i.before, i.after) for i in self.lost[:_SHOWN]]
            parts.append(Table(("lost item", "prompt", "wanted", self.before, self.after), rows, prose=True))
        if len(self.lost) > _SHOWN:
            parts.append(f"and {len(self.lost) - _SHOWN} more lost items.")
        return parts


def gate(
    before: Reports,
    after: Reports,
    *,
    floor: float | Mapping[str, float] | None = None,
    threshold: float = 0.05,
    alpha: float = 0.05,
    strict: bool = False,
    run: Run | None = None,
) -> GateReport:
    """Judge whether a tuned model lost more than is allowed and more than chance would have it.

    Args:
        before: the base's report, or one a suite by its name.
        after: the tuned model's, on the same prompts.
        floor: what the base loses against itself, see `noise_floor`; one for all suites, or by name.
        threshold: the loss that is allowed, as a share: 0.05 is five points.
        alpha: share of false alarms that all suites together may raise.
        strict: fail also where nobody can tell, because there are too few items or they scatter too much.
        run: the run that the tuned model comes from; the verdict is bound to its adapter and data.

    Raises:
        DataError: nothing to compare, or sides that do not belong together: all reasons at once.
    """
    olds, news = _named(before), _named(after)
    floors = floor if isinstance(floor, Mapping) else dict.fromkeys(olds, 0.0 if floor is None else floor)
    _refuse_odd_settings(threshold, alpha, floors, olds)
    _refuse_unlike(olds, news)
    pairs = list[_Pairs]()
    for suite, report in olds.items():
        pairs += [_Pairs.of(suite, metric, report, news[suite]) for metric in report.scores]
    raised = statistics.holm([pair.p for pair in pairs])
    changes = tuple(
        pair.change(p_holm, max(threshold, floors.get(pair.suite, 0.0)), alpha, len(pairs))
        for pair, p_holm in zip(pairs, raised, strict=True)
    )
    states = {change.state for change in changes}
    first = next(iter(olds.values()))
    bound = binding(run) if run else {}
    return GateReport(
        passed="lost" not in states and not (strict and "unsure" in states),
        changes=changes,
        before=first.name,
        after=next(iter(news.values())).name,
        number_format=first.number_format,
        digests={suite: report.digest for suite, report in olds.items()},
        threshold=threshold,
        alpha=alpha,
        strict=strict,
        **bound,
    )


def noise_floor(first: Reports, *again: Reports) -> dict[str, float]:
    """The largest change of a score when the same model was asked again, by suite: less than that is no loss.

    Args:
        first: the base's report, or one a suite by its name.
        again: the same, measured once more: in other batches, in another order, or drawn with other seeds.

    Raises:
        DataError: reports that do not belong together.
    """
    if not again:
        raise DataError("A noise floor compares a model with itself: give at least two reports on the same prompts.")
    olds = _named(first)
    floor: dict[str, float] = {}
    for other in map(_named, again):
        _refuse_unlike(olds, other)
        for suite, report in olds.items():
            moved = [_Pairs.of(suite, metric, report, other[suite]).mean for metric in report.scores]
            floor[suite] = max(floor.get(suite, 0.0), *map(abs, moved))
    return floor


def read_verdict(run: Run) -> GateReport:
    """The verdict that stands in a run.

    Raises:
        MissingArtifact: none was written.
        DataError: it is damaged, or on another adapter or other data than the run holds now.
    """
    path = run.require(VERDICT)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        changes = tuple(map(_change, known.pop("changes")))
        report = GateReport(changes=changes, **known)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, or no verdict of ftkit ({type(error).__name__}). Judge the run anew: "
            f"python -m ftkit evaluate {run.path} --gate"
        ) from error
    report._refuse_other(run)
    return report


def binding(run: Run) -> dict[str, str]:
    """What a verdict is bound to: the run's name, the digest of its adapter, and that of its training data.

    Raises:
        MissingArtifact: the run has no adapter.
    """
    weights = run.require("adapter") / "adapter_model.safetensors"
    adapter = files.digest(weights)[:12] if weights.is_file() else ""
    trained = run.facts.get("train")
    known = trained.get("data_digest", "") if isinstance(trained, dict) else ""
    return {"run": run.path.name, "adapter": adapter, "data": str(known)}


@dataclass(frozen=True)
class _Pairs:
    """Both sides of the items that both sides could score."""

    suite: str
    metric: str
    rows: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    unscored: int

    @classmethod
    def of(cls, suite: str, metric: str, before: EvalReport, after: EvalReport) -> "_Pairs":
        """The items that have a score on both sides."""
        both = both_scored(before, after, metric)
        if not both:
            raise DataError(f"{suite}: no item has a score by {metric} on both sides, so nothing can be compared.")
        return cls(suite, metric, tuple(both), len(before.rows) - len(both))

    @property
    def differences(self) -> list[float]:
        return [float(a[self.metric]) - float(b[self.metric]) for b, a in self.rows]

    @property
    def clusters(self) -> list[str]:
        return [str(b.get("cluster", b["id"])) for b, _ in self.rows]

    @property
    def mean(self) -> float:
        return sum(self.differences) / len(self.rows)

    @property
    def passes(self) -> bool:
        """Whether each prompt has one answer, which passes or fails."""
        values = {float(row[self.metric]) for row in itertools.chain.from_iterable(self.rows)}
        return values <= {0.0, 1.0} and len(set(self.clusters)) == len(self.rows)

    @property
    def p(self) -> float:
        """How often chance alone would lose at least as much."""
        from scipy.stats import binomtest

        if not self.passes:
            return _sign_flips(self.differences, self.clusters)
        lost, gained = (sum(d * sign > 0 for d in self.differences) for sign in (-1, 1))
        return float(binomtest(lost, lost + gained, alternative="greater").pvalue) if lost + gained else 1.0

    def change(self, p_holm: float, allowed: float, alpha: float, tests: int) -> Change:
        """What is said of the suite, once p is corrected for all suites."""
        difference = statistics.difference_interval(self.differences, self.clusters)
        state = "kept" if difference.low >= -allowed else "unsure"
        if p_holm <= alpha and -difference.value > allowed:
            state = "lost"
        seen: float | None = max(statistics.detectable(self.differences, self.clusters), allowed)
        if self.passes:
            seen = statistics.detectable_loss(len(self.rows), allowed, alpha / tests)
        before, after = ([float(pair[side][self.metric]) for pair in self.rows] for side in (0, 1))
        return Change(
            suite=self.suite,
            metric=self.metric,
            items=len(self.rows),
            unscored=self.unscored,
            before=statistics.interval(before, self.clusters),
            after=statistics.interval(after, self.clusters),
            difference=difference,
            lost=self._items(-1),
            gained=self._items(1),
            p=self.p,
            p_holm=p_holm,
            allowed=allowed,
            detectable=None if seen is None or seen > 1 else seen,
            state=state,
        )

    def _items(self, sign: int) -> tuple[Item, ...]:
        """The items that moved down (-1) or up (1), those that moved furthest first."""
        moved = [(sign * d, b, a) for d, (b, a) in zip(self.differences, self.rows, strict=True) if sign * d > 0]
        moved.sort(key=lambda entry: -entry[0])
        return tuple(
            Item(
                id=str(b["id"]),
                prompt=str(b.get("prompt", "")),
                wanted=" | ".join(map(str, b.get("expected") or ())),
                before=str(b.get("answer") or ""),
                after=str(a.get("answer") or ""),
            )
            for _, b, a in moved
        )


def _sign_flips(differences: Sequence[float], clusters: Sequence[str]) -> float:
    """One-sided p-value of a loss: the share of random signs of the clusters' sums that lose at least as much."""
    import numpy as np

    sums = np.bincount(statistics.numbered(clusters), np.asarray(differences, dtype=float))
    signs = np.random.default_rng(0).integers(0, 2, size=(_FLIPS, len(sums)), dtype=np.int8) * 2 - 1
    return float((1 + np.sum(signs @ sums <= sums.sum() + 1e-12)) / (1 + _FLIPS))


def _named(reports: Reports) -> dict[str, EvalReport]:
    if isinstance(reports, EvalReport):
        return {"all": reports}
    if isinstance(reports, Mapping) and all(isinstance(report, EvalReport) for report in reports.values()):
        return dict(reports)
    raise DataError(f"{type(reports).__name__} is no evaluation: give an EvalReport, or a dict of them by suite.")


def _refuse_odd_settings(threshold: Any, alpha: Any, floors: Mapping[str, Any], suites: Mapping[str, Any]) -> None:
    problems = []
    if not _is_share(threshold) or threshold == 1:
        problems.append(f"threshold={threshold!r} is outside 0 to 1 (the loss that is allowed; 0.05 is five points).")
    if not _is_share(alpha) or alpha in (0, 1):
        problems.append(f"alpha={alpha!r} is outside 0 to 1 (the share of false alarms; 0.05 is usual).")
    if unknown := set(floors) - set(suites):
        problems.append(f"floor names {', '.join(sorted(unknown))}, and the suites are {', '.join(suites)}.")
    problems += [
        f"floor {value!r} of {name} is outside 0 to 1 (what the base loses against itself)."
        for name, value in floors.items()
        if not _is_share(value)
    ]
    if problems:
        raise DataError("\n".join(problems))


def _is_share(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and 0 <= float(value) <= 1


def _refuse_unlike(olds: Mapping[str, EvalReport], news: Mapping[str, EvalReport]) -> None:
    """All reasons why two sides do not belong together, at once."""
    problems = []
    if not olds:
        problems.append("There are no suites to compare.")
    if set(olds) != set(news):
        problems.append(f"The suites differ: before {', '.join(olds) or 'none'}; after {', '.join(news) or 'none'}.")
    sides = [(suite, olds[suite], news[suite]) for suite in olds if suite in news]
    for suite, old, new in sides:
        problems += [f"{suite}: {problem}" for problem in _unlike(old, new)]
    for side in (olds, news):
        formats = {report.number_format for report in side.values()}
        if len(formats) > 1:
            problems.append(f"One side was measured in several number formats: {', '.join(sorted(formats))}.")
    if problems:
        raise DataError("\n".join(["These evaluations cannot be compared:", *problems, "Measure both sides alike."]))


def _unlike(old: EvalReport, new: EvalReport) -> list[str]:
    problems = unlike(old, new)
    if old.number_format != new.number_format:
        problems.append(f"the number formats differ: {old.number_format} before, {new.number_format} after.")
    if old.settings != new.settings:
        problems.append(f"the settings differ: {old.settings} before, {new.settings} after.")
    if set(old.scores) != set(new.scores):
        problems.append(f"the metrics differ: {', '.join(old.scores)} before, {', '.join(new.scores)} after.")
    if not old.scores:
        problems.append(f"{old.name} was scored by no metric, so nothing could be lost.")
    return problems


def _change(known: dict[str, Any]) -> Change:
    """A change out of JSON; a KeyError for what is none."""
    _STATES[known["state"]]
    scores = {key: Score(**known[key]) for key in ("before", "after", "difference")}
    items = {key: tuple(Item(**item) for item in known[key]) for key in ("lost", "gained")}
    return Change(**{**known, **scores, **items})
