"""Which system is better, and can this sample know it? Pairs of reports on the same prompts. Knows no model."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsFloat

from ftkit import tables
from ftkit.errors import DataError
from ftkit.evaluation import statistics
from ftkit.evaluation.scoring import EvalReport, labels_of, left_unscored, spelt
from ftkit.evaluation.statistics import Score
from ftkit.tables import Table

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """How far a system lies from the baseline in one metric; paired, so what the prompts share cancels.

    Args:
        name: of the system.
        metric: the metric.
        score: mean of the differences, with its interval.
        p: exact McNemar's for passes and failures, else the paired bootstrap's or Student's.
        holm: `p`, raised for all differences of the comparison together.
        prompts: clusters that both sides have scores for.
        left_out: answers that one of the two sides has no score for.
        detectable: the smallest true difference that a sample like this finds in four of five repeats; infinite where
            it finds none, however large.
        reach: the same by the spread of the pairs alone, from which follows how many prompts another would need.
        scale: 100 where scores lie between 0 and 1, so that differences are told in points; else 1.
    """

    name: str
    metric: str
    score: Score
    p: float
    holm: float
    prompts: int
    left_out: int
    detectable: float
    reach: float
    scale: float

    @property
    def better(self) -> bool:
        """Whether the interval lies above zero, and stays so among all that was compared."""
        return self.score.low > 0 and self.holm < ALPHA

    @property
    def worse(self) -> bool:
        """Whether the interval lies below zero, and stays so among all that was compared."""
        return self.score.high < 0 and self.holm < ALPHA

    def prompts_for(self, difference: float) -> int:
        """Prompts in all that would find a true `difference` (0.05 is five points) in four of five repeats.

        Raises:
            DataError: no difference, which no number of prompts finds.
        """
        if not abs(difference) > 0:
            raise DataError(f"difference={difference}: a number above or below 0 is wanted; no sample finds nothing.")
        return math.ceil(self.prompts * (self.reach / abs(difference)) ** 2)

    def told(self, value: float, sign: str = "") -> str:
        """A difference in points of a hundred, or as it is."""
        if math.isinf(value):
            return "none"
        return f"{value * self.scale:{sign}.{1 if self.scale > 1 else 3}f}"

    def __str__(self) -> str:
        return (
            f"{self.told(self.score.value, '+')} [{self.told(self.score.low, '+')}, {self.told(self.score.high, '+')}]"
        )


@tables.shown
@dataclass(frozen=True)
class Comparison:
    """Systems on the same prompts; the first is the baseline, and verdicts are on `metric`."""

    reports: tuple[EvalReport, ...]
    metric: str
    differences: tuple[Difference, ...]

    @property
    def before(self) -> EvalReport:
        """The baseline."""
        return self.reports[0]

    @property
    def after(self) -> EvalReport:
        """The last system; of two, the second."""
        return self.reports[-1]

    @property
    def difference(self) -> Score:
        """Of the last system from the baseline."""
        return self._of(self.after.name).score

    @property
    def better(self) -> bool:
        """Whether the last system is better than the baseline, and this sample can tell."""
        return self._of(self.after.name).better

    @property
    def best(self) -> EvalReport:
        """The system with the highest mean; of equal ones the earlier."""
        return max(self.reports, key=lambda report: report.scores[self.metric].value)

    def verdict(self) -> str:
        """Plain sentences, one a system beside the baseline."""
        return " ".join(self._sentences())

    def _formats(self) -> list[str]:
        return list(dict.fromkeys(report.number_format for report in self.reports))

    def _sentences(self) -> list[str]:
        said = [self._sentence(self._of(report.name)) for report in self.reports[1:]]
        if len(self.reports) > 2:
            said.append(
                f"{self.best.name} has the highest {spelt(self.metric)}. The best of several on one sample is partly "
                "luck: confirm it on prompts that did not choose it."
            )
        if len(formats := self._formats()) > 1:
            said.append(
                f"MIND: the weights are stored in other formats ({', '.join(formats)}), which alone can differ."
            )
        return said

    def examples(self, n: int = 3, which: Literal["first", "lost", "won"] = "first") -> "Examples":
        """Up to `n` prompts with both answers beside the wanted one: the first, or those lost or won since."""
        if which not in ("first", "lost", "won"):
            raise DataError(f"which={which!r} is unknown. Choose first, lost or won.")
        pairs = list(zip(self.before.rows, self.after.rows, strict=True))
        if which != "first":
            sign = 1 if which == "won" else -1
            pairs = [pair for pair in pairs if _moved(*pair, self.metric) * sign > 0]
        return Examples(self.before.name, self.after.name, tuple(pairs[:n]), self.metric)

    def _of(self, name: str) -> Difference:
        return next(d for d in self.differences if (d.name, d.metric) == (name, self.metric))

    def _sentence(self, d: Difference) -> str:
        name, metric = self.before.name, spelt(self.metric)
        unit = f"points of {metric}" if d.scale > 1 else f"of {metric}"
        low, high = d.told(d.score.low, "+"), d.told(d.score.high, "+")
        change = f"{d.told(d.score.value, '+')} {unit} [{low}, {high}] on {d.prompts} prompts"
        if d.better:
            return f"{d.name} is better than {name}: {change}."
        if d.worse:
            return f"{d.name} is WORSE than {name}: {change}. Do not ship it."
        if d.score.low > 0 or d.score.high < 0:
            among = f"among the {len(self.differences)} compared"
            change += f"; the interval leaves out 0, but p is {spelt_p(d.holm)} {among}"
        reach = f" In four of five repeats such a sample finds differences of {d.told(d.detectable)} {unit} or more"
        if math.isinf(d.detectable):
            reach = " So few prompts find no difference, however large"
        more = ""
        if d.score.value and (missing := d.prompts_for(d.score.value) - d.prompts) > 0:
            more = f"; one as small as this needs about {missing:,} more prompts"
        return f"No difference between {name} and {d.name} can be told from this sample: {change}.{reach}{more}."

    def _parts(self) -> list[Table | str]:
        metrics = list(dict.fromkeys(d.metric for d in self.differences))
        formats = self._formats()
        ending = ("stopped by itself", "weights")[: min(2, len(formats))]
        head = ("metric", "model", "score [95 %]", "change, points [95 %]", "p (Holm)", "detectable", *ending)
        rows = []
        for metric in metrics:
            found = {d.name: d for d in self.differences if d.metric == metric}
            for report in self.reports:
                d = found.get(report.name)
                changed = (str(d), spelt_p(d.holm), d.told(d.detectable)) if d else ("", "", "")
                last = (report.ending()[0], report.number_format) if metric == metrics[0] else ("", "")
                rows.append((spelt(metric), report.name, report.scores[metric], *changed, *last[: len(ending)]))
        alike = f", weights: {formats[0]}" if len(formats) == 1 else ""
        table = Table(head, rows, caption=f"{len(self.reports[0].rows)} prompts{alike}")
        return [table, *left_unscored(*self.reports), *self._sentences()]


@dataclass(frozen=True)
class Examples:
    """Answers of two models to the same prompts, to be read."""

    before_name: str
    after_name: str
    pairs: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    metric: str = "exact_match"

    def __str__(self) -> str:
        blocks = [
            f"PROMPT\n{b['prompt']}\nWANTED\n{b['expected'][0]}\n"
            f"{self.before_name.upper()} {self._tick(b)}\n{b['answer']}\n"
            f"{self.after_name.upper()} {self._tick(a)}\n{a['answer']}"
            for b, a in self.pairs
        ]
        return tables.visible("\n\n".join(blocks))

    def _repr_html_(self) -> str:
        head = ("prompt", "wanted", self.before_name, self.after_name)
        rows = [
            (b["prompt"], b["expected"][0], f"{self._tick(b)} {b['answer']}", f"{self._tick(a)} {a['answer']}")
            for b, a in self.pairs
        ]
        return Table(head, rows, prose=True)._repr_html_()

    def _tick(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.metric)
        if value is None:
            return "○"
        return {0.0: "✗", 1.0: "✓"}.get(float(value), f"{value:.2f}")


def compare(
    baseline: EvalReport, *others: EvalReport, metric: str | None = None, across_formats: bool = False
) -> Comparison:
    """Pair any number of reports with a baseline, prompt by prompt, in every metric that all of them have.

    A metric that could score nothing on both sides is left out, unless the verdict is on it.

    Args:
        baseline: what the others are compared with.
        others: reports on the same prompts.
        metric: that the verdict is on; by default the baseline's first.
        across_formats: allow weights stored in other number formats, which changes answers by itself.

    Raises:
        DataError: nothing to compare, other prompts, other number formats, other settings, two systems of one name, or
            a metric that one of them lacks. All problems are named at once.
    """
    reports = (baseline, *others)
    if odd := [report for report in reports if not isinstance(report, EvalReport)]:
        raise DataError(f"{type(odd[0]).__name__} is no evaluation: give reports, as evaluate makes them, one by one.")
    shared = [name for name in baseline.scores if all(name in report.scores for report in others)]
    chosen = metric or next(iter(shared), "")
    if problems := _problems(baseline, others, chosen, shared, across_formats):
        raise DataError("\n".join(problems))
    paired = {}
    for other, name in itertools.product(others, shared):
        paired[other.name, name] = both_scored(baseline, other, name)
    if none := [name for name in {other.name for other in others} if not paired[name, chosen]]:
        raise DataError(f"{baseline.name} and {none[0]} have no prompt that {chosen} could score on both sides.")
    found = [_difference(pairs, *names, len(baseline.rows)) for names, pairs in paired.items() if pairs]
    raised = statistics.holm([difference.p for difference in found])
    told = [replace(difference, holm=p) for difference, p in zip(found, raised, strict=True)]
    return Comparison(reports, chosen, tuple(told))


def _problems(
    baseline: EvalReport, others: Sequence[EvalReport], metric: str, shared: Sequence[str], across_formats: bool
) -> list[str]:
    """Why these reports cannot be compared."""
    if not others:
        return ["There is one report, and nothing to compare it with. Evaluate another system on the same examples."]
    found = []
    names = [report.name for report in (baseline, *others)]
    if doubled := [name for place, name in enumerate(names) if name in names[:place]]:
        found.append(f"Two systems are called {doubled[0]!r}. Tell them apart: evaluate(name=...).")
    for other in others:
        found += unlike(baseline, other)
        if other.number_format != baseline.number_format and not across_formats:
            found.append(
                f"{baseline.name} answered in {baseline.number_format} and {other.name} in {other.number_format}; that "
                "alone changes answers. Load both in one format, or say across_formats=True."
            )
        both = baseline.settings.keys() & other.settings.keys()
        found += [
            f"{baseline.name} was evaluated with {key}={baseline.settings[key]!r} and {other.name} with "
            f"{key}={other.settings[key]!r}; give both the same."
            for key in sorted(both)
            if baseline.settings[key] != other.settings[key]
        ]
    if metric not in shared:
        found.append(
            f"metric={metric!r} is not scored in every report; there are: {', '.join(shared) or 'none in common'}."
        )
    return found


def unlike(old: EvalReport, new: EvalReport) -> list[str]:
    """Why the rows of two reports are no pairs."""
    problems = [f"{report.name} has no rows." for report in (old, new) if not report.rows]
    for report in (old, new):
        seen = Counter(str(row.get("id")) for row in report.rows)
        if doubled := [name for name, count in seen.items() if count > 1]:
            problems.append(f"{report.name} has ids more than once: {', '.join(doubled[:3])}.")
        for metric in report.scores:
            odd = [str(row.get("id")) for row in report.rows if not _is_score(row.get(metric))]
            if odd:
                problems.append(f"{report.name} has {metric} scores that are no numbers: {', '.join(odd[:3])}.")
    if len(old.rows) != len(new.rows):
        counts = f"{len(old.rows)} and {len(new.rows)}"
        problems.append(f"{old.name} and {new.name} answered different prompts: {counts} of them.")
    elif _asked(old) != _asked(new):
        problems.append(
            f"{old.name} and {new.name} answered different prompts, or the same with other references (digests "
            f"{old.digest or 'unknown'} and {new.digest or 'unknown'}); evaluate both on the same examples."
        )
    return problems


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, SupportsFloat) and math.isfinite(value))


def _asked(report: EvalReport) -> tuple[Any, ...]:
    return report.digest, [(row.get("id"), row.get("prompt")) for row in report.rows]


def both_scored(old: EvalReport, new: EvalReport, metric: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of both sides that both have a score for."""
    pairs = zip(old.rows, new.rows, strict=True)
    return [(b, a) for b, a in pairs if b.get(metric) is not None and a.get(metric) is not None]


def _difference(
    both: Sequence[tuple[dict[str, Any], dict[str, Any]]], name: str, metric: str, asked: int
) -> Difference:
    """One system beside the baseline in one metric."""
    clusters = [b["cluster"] for b, _ in both]
    before, after = ([float(pair[side][metric]) for pair in both] for side in (0, 1))
    bounded = all(0 <= value <= 1 for value in (*before, *after))
    exact = {*before, *after} <= {0.0, 1.0} and len(set(clusters)) == len(clusters) and metric != "macro_f1"
    if metric == "macro_f1":
        wanted, was = labels_of([b for b, _ in both])
        score, p, reach = statistics.macro_f1_difference(wanted, was, labels_of([a for _, a in both])[1], clusters)
    else:
        changes = [new - old for old, new in zip(before, after, strict=True)]
        score, reach = statistics.difference_interval(changes, clusters), statistics.detectable(changes, clusters)
        p = statistics.mcnemar(before, after) if exact else statistics.paired_test(changes, clusters)
    least = reach
    if exact:  # however unlike the pairs are, few of them cannot be told from chance
        least = max(reach, statistics.detectable_loss(len(both), 0, ALPHA / 2) or math.inf)
    return Difference(
        name=name,
        metric=metric,
        score=score,
        p=p,
        holm=p,
        prompts=len(set(clusters)),
        left_out=asked - len(both),
        detectable=math.inf if least > 1 and bounded else least,
        reach=reach,
        scale=100 if bounded else 1,
    )


def _moved(before: Mapping[str, Any], after: Mapping[str, Any], metric: str) -> float:
    """How far a prompt moved; 0 where a side is unscored."""
    if before.get(metric) is None or after.get(metric) is None:
        return 0.0
    return float(after[metric]) - float(before[metric])


def spelt_p(value: float) -> str:
    """A p-value for readers."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
