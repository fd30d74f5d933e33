"""Runs that went wrong, recorded: curves, answers and scores to tell illnesses by, without training anything.

`tools/make_sick_runs.py` made them with the bundled model. What each of them has is said by the kit's own reports on
what was recorded: `training.diagnose`, `preflight.check`, `data.leakage`, `evaluation.compare`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import data, evaluation, files, tables
from ftkit.config import TrainConfig
from ftkit.evaluation import EvalReport
from ftkit.models import Answer
from ftkit.training import History, HistoryPoint

HIDDEN = "hidden"  # the run whose NaN a plain trainer logged as 0
_METRICS = {"mentions": evaluation.mentions}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SickRun:
    """One recorded run.

    Args:
        name: of its illness.
        how: it was made.
        history: its curve.
        config: its settings.
        metric: that its answers are scored by.
        train: rows that it was trained on, or some of them; None where nobody needs them.
        kept: what else was recorded: answers by the name of a set of prompts, a list of rows each.
    """

    name: str
    how: str
    history: History
    config: TrainConfig
    metric: str
    train: Any
    kept: Mapping[str, Rows]

    def examples(self, rows: str = "rows") -> Any:
        """The prompts of a set with the answers that are wanted."""
        chats = []
        for row in self.kept[rows]:
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["wanted"]}]
            chats.append({"messages": turns, **({"accept": row["accept"]} if "accept" in row else {})})
        return data.load_examples(chats)

    def report(self, system: str, rows: str = "rows") -> EvalReport:
        """The recorded answers of "base" or "tuned", or of another way of asking, scored as `evaluate` does it."""
        given = [row[system] for row in self.kept[rows]]
        answers = [Answer(said["answer"], said["tokens"], said["stopped"]) for said in given]
        metric = "exact_match" if rows == "task" else self.metric
        return evaluation.score_answers(
            answers,
            self.examples(rows),
            name=system,
            metrics=[_METRICS.get(metric, metric)],
            normalise=evaluation.exact_words,
            number_format="bfloat16",
        )


@tables.shown
@dataclass(frozen=True)
class SickRuns:
    """Runs by letter, in an order that their names do not tell; shows their figures."""

    lettered: Mapping[str, SickRun]

    def __getitem__(self, name: str) -> SickRun:
        """A run by its letter or by the name of its illness."""
        known = {**self.lettered, **{run.name: run for run in self.lettered.values()}}
        if name not in known:
            raise KeyError(f"There is no run {name!r}, only {', '.join(known)}.")
        return known[name]

    @property
    def histories(self) -> dict[str, History]:
        """Curves by letter."""
        return {letter: run.history for letter, run in self.lettered.items()}

    @property
    def names(self) -> dict[str, str]:
        """What each letter has."""
        return {letter: run.name for letter, run in self.lettered.items()}

    def answers(self, count: int = 3) -> tables.Table:
        """The first answers of each run beside the wanted ones."""
        lines = []
        for letter, run in self.lettered.items():
            for row in run.kept.get("shown", run.kept["rows"])[:count]:
                asked = row["prompt"].split("\n\n", 1)[-1]
                lines.append((letter, asked, row["wanted"], row["tuned"]["answer"] or "(nothing)"))
        return tables.Table(("run", "asked", "wanted", "answered"), lines, prose=True)

    def _parts(self) -> list[tables.Table | str]:
        head = ("run", "loss, first → last", "gradient norm at the end", "base", "tuned", "stopped by itself")
        rows = []
        for letter, run in self.lettered.items():
            losses = [value for _, value in run.history.losses]
            norms = [p.grad_norm for p in run.history.points if p.grad_norm is not None]
            base, tuned = (run.report(system) for system in ("base", "tuned"))
            scores = (f"{report.scores[next(iter(report.scores))].value:.0%}" for report in (base, tuned))
            curve = (f"{losses[0]:.2f} → {losses[-1]:.2f}", f"{norms[-1]:.2g}")
            rows.append((letter, *curve, *scores, f"{tuned.stopped:.0%}"))
        return [tables.Table(head, rows, caption="base and tuned: right answers to the same test prompts")]


def sick_runs(seed: int = 42) -> SickRuns:
    """The recorded runs, lettered in an order that follows from `seed`."""
    known = _recorded()
    names = [name for name in known if name != HIDDEN]
    random.Random(seed).shuffle(names)
    return SickRuns({letter: known[name] for letter, name in zip("ABCDEF", names, strict=True)})


def hidden_nan() -> SickRun:
    """A run whose loss was no number from its first batch, as a plain trainer logs it."""
    return _recorded()[HIDDEN]


def _recorded() -> dict[str, SickRun]:
    return {name: _read(name, facts) for name, facts in files.sample("sick_runs").items()}


def _read(name: str, facts: Mapping[str, Any]) -> SickRun:
    points = []
    for point in facts["points"]:
        values: dict[str, Any] = {key: float(value) for key, value in point.items() if key != "step"}
        points.append(HistoryPoint(point["step"], **values))
    kept = {key: facts[key] for key in ("rows", "shown", "task", "fresh") if key in facts}
    train = data.load_examples([{"messages": chat} for chat in facts["train"]]) if "train" in facts else None
    history = History.of(points)
    config = TrainConfig(**facts["settings"], max_steps=history.steps)  # each was run to its end
    return SickRun(name, facts["how"], history, config, facts.get("metric", ""), train, kept)
