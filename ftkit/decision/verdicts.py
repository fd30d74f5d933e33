"""What follows from a measured table of approaches: who is better, what it costs, which one to take. Knows no model."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ftkit import evaluation, files, tables
from ftkit.errors import ConfigError
from ftkit.evaluation import Difference, EvalReport, Score
from ftkit.tables import Table

ALPHA = 0.03  # with the usual 0.05, 200 repeats of one approach beside itself often call more than 5 % different
FEW = 20  # prompts below which only very large differences can be told


@dataclass(frozen=True)
class Approach:
    """How one approach answered the test part, and what it cost.

    Args:
        name: as it is asked for.
        report: its answers and scores.
        tuned: whether weights were trained for it.
        prompt_tokens: of one question as the model reads it, on average.
        answer_tokens: of one answer, on average.
        latency_s: seconds from question to answer, one question at a time; NaN where it was not measured.
        minutes_per_1000: minutes of this machine for 1,000 answers, in batches.
        setup_minutes: spent once, on training or on searching a prompt.
        note: what a reader should know of it.
    """

    name: str
    report: EvalReport
    tuned: bool = False
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    latency_s: float = math.nan
    minutes_per_1000: float = 0.0
    setup_minutes: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Terms:
    """What an answer may cost, and what is paid.

    Args:
        answers: how many will be wanted in all; what is spent once is shared among them.
        margin: a difference of scores that does not matter; 0.05 is five points.
        max_latency_s: seconds that one answer may take.
        max_cost: what 1,000 answers may cost at each price that is stated.
        price_per_hour: of this machine.
        price_per_million_tokens: of the prompt and of the answer, at a service.
    """

    answers: int = 10_000
    margin: float = 0.05
    max_latency_s: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    price_per_million_tokens: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        least = {"answers": 1, "margin": 0, "max_latency_s": 0, "max_cost": 0, "price_per_hour": 0}
        given = {name: getattr(self, name) for name in least}
        faults = [
            f"{name}={value} is no number from {least[name]} on."
            for name, value in given.items()
            if value is not None and not least[name] <= value < math.inf
        ]
        if self.max_cost is not None and self.price_per_hour is None and self.price_per_million_tokens is None:
            faults.append(
                f"max_cost={self.max_cost} without a price: state price_per_hour or price_per_million_tokens."
            )
        if faults:
            raise ConfigError("\n".join(faults))

    def prices(self, approach: Approach) -> dict[str, float]:
        """What 1,000 answers cost, by the price that was stated."""
        found = {}
        if self.price_per_hour is not None:
            found[f"at {self.price_per_hour:g} an hour"] = approach.minutes_per_1000 / 60 * self.price_per_hour
        if self.price_per_million_tokens is not None:
            read, written = self.price_per_million_tokens
            tokens = approach.prompt_tokens * read + approach.answer_tokens * written
            found[f"at {read:g} and {written:g} a million tokens"] = tokens / 1000
        return found

    def minutes(self, approach: Approach) -> float:
        """Of this machine for all answers that are wanted, with what is spent once."""
        return approach.setup_minutes + self.answers / 1000 * approach.minutes_per_1000

    def broken(self, approach: Approach) -> str:
        """Which limit an approach does not keep; empty where it keeps all."""
        if self.max_latency_s is not None and not approach.latency_s <= self.max_latency_s:
            return f"{approach.latency_s:.2g} s an answer, at most {self.max_latency_s:g} wanted"
        for price, cost in self.prices(approach).items():
            if self.max_cost is not None and cost > self.max_cost:
                return f"{cost:.2g} for 1,000 answers {price}, at most {self.max_cost:g} wanted"
        return ""


@tables.shown
@dataclass(frozen=True)
class Decision:
    """Approaches measured on the same prompts, and what follows from it.

    Args:
        approaches: those that were measured.
        metric: the one they are judged by.
        left_out: those that were not, with the reason.
        curve: reports of fine-tunes on fewer rows, by the number of rows; the whole training part comes last.
        notes: what a reader should know of the data.
        terms: limits, prices and what does not matter.
        groups: a name for each test row, by which scores are shown apart as well.
    """

    approaches: tuple[Approach, ...]
    metric: str
    left_out: dict[str, str] = field(default_factory=dict)
    curve: tuple[tuple[int, EvalReport], ...] = ()
    notes: tuple[str, ...] = ()
    terms: Terms = Terms()
    groups: tuple[str, ...] = ()

    @cached_property
    def scored(self) -> tuple[Approach, ...]:
        """The approaches that have a score, in order."""
        return tuple(one for one in self.approaches if not math.isnan(self.score(one).value))

    def score(self, approach: Approach) -> Score:
        """The mean score with its interval."""
        return approach.report.scores[self.metric]

    @cached_property
    def _differences(self) -> dict[tuple[str, str], Difference]:
        """Every pair: which approach is best was chosen on this sample, so Holm's correction is over all of them."""
        reports = [one.report for one in self.scored]
        found: list[tuple[str, Difference]] = []
        for place, first in enumerate(reports[:-1]):
            beside = evaluation.compare(first, *reports[place + 1 :], metric=self.metric)
            found += [(first.name, d) for d in beside.differences if d.metric == self.metric]
        raised = evaluation.holm([difference.p for _, difference in found])
        return {(d.name, first): replace(d, holm=p) for (first, d), p in zip(found, raised, strict=True)}

    def difference(self, name: str, beside: str) -> Difference:
        """How much better `name` is than `beside`, paired, with its p-value raised for all pairs (Holm)."""
        if (name, beside) in self._differences:
            return self._differences[name, beside]
        found = self._differences[beside, name]
        score = Score(-found.score.value, -found.score.high, -found.score.low)
        return replace(found, name=name, score=score)

    @cached_property
    def allowed(self) -> tuple[Approach, ...]:
        """The scored approaches that keep the limits."""
        return tuple(one for one in self.scored if not self.terms.broken(one))

    @cached_property
    def best(self) -> Approach | None:
        """The highest score within the limits; of equal ones the cheaper."""
        return max(self.allowed, key=lambda one: (self.score(one).value, -self.terms.minutes(one)), default=None)

    @cached_property
    def chosen(self) -> Approach | None:
        """The cheapest of those whose difference from the best may be 0; None where nothing works.

        Here the interval of the pair alone decides: to call another one better wants more than to leave a cheaper one.
        """
        if self.best is None or self.score(self.best).value <= 0:
            return None
        working = [one for one in self.allowed if self.score(one).value > 0]
        tied = [one for one in working if one is self.best or self._beside_best(one).score.low <= 0]
        return min(tied, key=self.terms.minutes)

    def _beside_best(self, one: Approach) -> Difference:
        return self.difference(self.best.name, one.name)  # type: ignore[union-attr]

    def shown(self, one: Approach, other: Approach) -> bool:
        """Whether `one` was shown to be better than `other`."""
        beside = self.difference(one.name, other.name)
        return beside.better and beside.holm < ALPHA

    def _equal(self, one: Approach, other: Approach) -> bool:
        """Whether `one` is at most the margin better than `other`, as far as 95 % go."""
        return one is other or self.difference(one.name, other.name).score.high <= self.terms.margin

    @property
    def settled(self) -> bool:
        """Whether the sample is large enough to know that nothing better is lost by the choice."""
        both = self.best is not None and self.chosen is not None
        return both and self.prompts >= FEW and self._equal(self.best, self.chosen)  # type: ignore[arg-type]

    @property
    def prompts(self) -> int:
        """Independent test prompts."""
        rows = self.approaches[0].report.rows if self.approaches else ()
        return len({row.get("cluster") for row in rows})

    def verdict(self) -> str:
        """Plain sentences that follow from the table."""
        said = []
        if self.prompts < FEW:
            said.append(
                f"Too few examples: {self.prompts} test prompts tell only very large differences; {FEW} or more are "
                "wanted, better 100."
            )
        out = {one.name: why for one in self.scored if (why := self.terms.broken(one))}
        said += [f"Out by the limits: {name} ({why})." for name, why in out.items()]
        if not self.scored:
            said.append("Nothing was scored, so nothing can be said.")
        elif self.best is None:
            said.append("No approach keeps the limits: raise them, or take a smaller model or a faster machine.")
        elif self.chosen is None:
            said.append(
                f"Nothing works: no approach scores above {self._told(self.best)}. Read some answers, then try another "
                "metric, a larger base model, or more rows."
            )
        else:
            said += [self._choice(self.best, self.chosen), self._on_tuning(self.chosen)]
        return " ".join([*said, *self._enough_data()])

    def _told(self, one: Approach) -> str:
        return f"{self.score(one).value:.1%}" if self.score(one).high <= 1 else f"{self.score(one).value:.3g}"

    def _choice(self, best: Approach, chosen: Approach) -> str:
        take = f"Take {chosen.name}"
        values = {self.score(one).value for one in self.allowed}
        if len(self.allowed) == 1:
            return f"{take}: {self._told(chosen)}, and nothing else to compare it with."
        if len(values) == 1:
            return f"All approaches score the same, {self._told(chosen)}. {take}, the cheapest."
        if best is chosen:
            equal = [one for one in self.allowed if one is not best and not self.shown(best, one)]
            if not equal:
                return f"{take}: {self._told(best)}, better than every other approach."
            even = [one.name for one in equal if self.score(one).value > 0 and self._beside_best(one).score.low <= 0]
            likely = [one.name for one in equal if self._beside_best(one).score.low > 0]
            said = f"{take}: with {self._told(best)} it has the highest score"
            if even:
                said += f", and it is cheaper than {_listed(even)}, from which this sample cannot tell it"
            if likely:
                said += (
                    f". It is probably better than {_listed(likely)}, but among {len(self._differences)} pairs this "
                    "sample is too small to be sure"
                )
            return said + "."
        beside = self.difference(best.name, chosen.name)
        change = f"{beside} points on {beside.prompts} prompts" if beside.scale > 1 else str(beside)
        if self._equal(best, chosen):
            return (
                f"{take}: {best.name} scores {self._told(best)} and {chosen.name} {self._told(chosen)}, a difference "
                f"that does not matter ({change}), and {chosen.name} is cheaper."
            )
        more = beside.prompts_for(beside.score.value) - beside.prompts
        wanted = f" About {more:,} more test prompts would tell it." if more > 0 else ""
        return (
            f"Too few examples to tell the best: {best.name} scores {self._told(best)} and {chosen.name} "
            f"{self._told(chosen)} ({change}).{wanted} Until then: {take[0].lower()}{take[1:]}, the cheapest that may "
            "be as good."
        )

    def _on_tuning(self, chosen: Approach) -> str:
        tuned, plain = ([one for one in self.allowed if one.tuned is kind] for kind in (True, False))
        if not tuned or not plain:
            return ""
        top, untuned = (max(of, key=lambda one: self.score(one).value) for of in (tuned, plain))
        if chosen.tuned:
            beside = self.difference(chosen.name, untuned.name)
            if self.shown(chosen, untuned):
                return f"Fine-tuning pays: {beside} points beside {untuned.name}, the best without it."
            return f"It was not shown to be better than {untuned.name} without fine-tuning ({beside}), only cheaper."
        beside = self.difference(top.name, chosen.name)
        if self._equal(top, chosen) and self.prompts >= FEW:
            return f"Do not fine-tune: {top.name} brings nothing that matters beside {chosen.name} ({beside} points)."
        return f"Do not fine-tune yet: {top.name} was not shown to be better than {chosen.name} ({beside} points)."

    def _enough_data(self) -> list[str]:
        """What the last step of the learning curve says."""
        if len(self.curve) < 2:
            return []
        (fewer, before), (rows, after) = self.curve[-2:]
        (d,) = [d for d in evaluation.compare(before, after, metric=self.metric).differences if d.metric == self.metric]
        change = f"from {fewer:,} to {rows:,} training rows the score of the fine-tune moved by {d} points"
        if d.better:
            return [f"More rows still help: {change}. Collect more."]
        if d.score.high <= self.terms.margin and self.prompts >= FEW:
            return [f"There are enough rows: {change}."]
        return [f"Whether more rows would help cannot be told: {change}."]

    def _parts(self) -> list[Table | str]:
        head = ["approach", f"{self.metric.replace('_', ' ')} [95 %]"]
        first = self.scored[0] if self.scored else None
        if first is not None:
            head += [f"beside {first.name}", "p (Holm)"]
        if self.best is not None and self.best is not first:
            head += [f"beside {self.best.name}, the best", "p (Holm)"]
        unscored = [one.report.unscored.get(self.metric, 0) for one in self.approaches]
        head += ["unscored"] if any(unscored) else []
        rows = []
        for one, lost in zip(self.approaches, unscored, strict=True):
            cells: list[Any] = [f"{one.name} ←" if one is self.chosen else one.name, self.score(one)]
            for beside in (first, self.best if self.best is not first else None):
                cells += self._beside(one, beside) if beside is not None else []
            rows.append([*cells, lost] if any(unscored) else cells)
        parts: list[Table | str] = [Table(head, rows), self._costs()]
        if self.groups:
            names = list(dict.fromkeys(self.groups))
            apart = [[one.name, *(self._of_group(one, name) for name in names)] for one in self.approaches]
            counts = [f"{name} ({self.groups.count(name)} rows)" for name in names]
            parts.append(Table(("approach", *counts), apart))
        if self.curve:
            parts.append(
                Table(("training rows", head[1]), [(n, report.scores[self.metric]) for n, report in self.curve])
            )
        parts += [f"{one.name}: {one.note}" for one in self.approaches if one.note]
        parts += [f"Not measured: {name}, as {why}" for name, why in self.left_out.items()]
        told = (
            f"Approaches count as different where p is below {ALPHA}, of all pairs together. Cheap is what takes few "
            f"minutes of this machine for {self.terms.answers:,} answers, with what is spent once."
        )
        return [*parts, *self.notes, *([told] if len(self.scored) > 1 else []), self.verdict()]

    def _costs(self) -> Table:
        prices = list(self.terms.prices(self.approaches[0])) if self.approaches else []
        head = ["approach", "tokens read + written", "seconds an answer", "minutes for 1,000", "minutes once"]
        rows = []
        for one in self.approaches:
            tokens = f"{one.prompt_tokens:.0f} + {one.answer_tokens:.0f}"
            spent = [tokens, _seconds(one.latency_s), f"{one.minutes_per_1000:.1f}", f"{one.setup_minutes:.1f}"]
            rows.append([one.name, *spent, *(f"{cost:.3g}" for cost in self.terms.prices(one).values())])
        return Table([*head, *(f"1,000 {price}" for price in prices)], rows)

    def _beside(self, one: Approach, other: Approach) -> list[str]:
        if one is other or one not in self.scored:
            return ["", ""]
        found = self.difference(one.name, other.name)
        return [str(found), "< 0.001" if found.holm < 0.001 else f"{found.holm:.3f}"]

    def _of_group(self, one: Approach, name: str) -> Score | str:
        rows = [row for row, group in zip(one.report.rows, self.groups, strict=False) if group == name]
        known = [row for row in rows if row.get(self.metric) is not None]
        values = [float(row[self.metric]) for row in known]
        return evaluation.interval(values, [row["cluster"] for row in known]) if values else "not scored"

    def save(self, path: str | Path) -> Path:
        """Write numbers, reasons and verdict as JSON, whole or not at all."""
        rows = []
        for one in self.approaches:
            facts = {key: value for key, value in vars(one).items() if key != "report"}
            facts["latency_s"] = None if math.isnan(one.latency_s) else one.latency_s
            told = one.report.summary()
            rows.append(facts | {"score": told[self.metric], "unscored": told["unscored"].get(self.metric, 0)})
        pairs = [
            {"name": name, "beside": beside, "change": vars(d.score), "p": d.p, "holm": d.holm}
            for (name, beside), d in self._differences.items()
        ]
        return files.write_json(
            path,
            {
                "verdict": self.verdict(),
                "chosen": self.chosen.name if self.chosen else None,
                "metric": self.metric,
                "prompts": self.prompts,
                "approaches": rows,
                "differences": pairs,
                "curve": [{"rows": n, **report.summary()[self.metric]} for n, report in self.curve],
                "left_out": self.left_out,
                "notes": list(self.notes),
                "terms": vars(self.terms),
            },
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"
