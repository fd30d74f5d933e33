"""Is it better? Answers of any number of systems to the same prompts, scored item by item, and compared in pairs.

Knows models and rows. What a text scores is in `metrics`, what a sample can tell in `statistics`.
"""

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftkit import chat, files, tables
from ftkit.data import prompt
from ftkit.errors import DataError, FtkitWarning, MissingArtifact
from ftkit.evaluation import metrics as texts
from ftkit.evaluation import statistics
from ftkit.evaluation.metrics import Metric, answered, squad_normalise
from ftkit.evaluation.statistics import Score
from ftkit.hardware import release_memory
from ftkit.models import Answer, answer_nll, generate, load_adapter
from ftkit.runs import Run
from ftkit.tables import Table

METRICS = (
    "exact_match",
    "token_f1",
    "accuracy",
    "macro_f1",
    "json_valid",
    "schema",
    "tool_calls",
    "rouge_l",
    "chrf",
    "stopped",
)
ENOUGH = 40  # prompts from which on intervals hold what they promise (benchmarks/intervals.py)
_ENDING = ("stopped by itself", "prompts", "weights")
_ROW = ("id", "cluster", "prompt", "expected", "answer")  # what each line of a report says
_OWN = ("id", "cluster", "prompt", "expected", "answer", "stopped", "tokens", "label", "report")
_FAILURES = (  # what a metric of the user's may raise without taking the other answers with it
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, StopIteration, TypeError),
    ValueError,
)
_UNSCORED = Score(math.nan, math.nan, math.nan)


@tables.shown
@dataclass(frozen=True)
class EvalReport:
    """How one system answered one set of prompts.

    Args:
        name: of the system.
        scores: by metric: the mean over the scored answers, with its interval.
        rows: one answer each: `id`, `cluster` (answers to one prompt share it), `prompt`, `expected`, `answer`,
            `stopped`, `tokens`, and what each metric says, None where it could not score. For `accuracy` and `macro_f1`
            that is whether the label was right, and `label` is the one that the answer names.
        number_format: of the weights that answered, such as "bfloat16" or "4-bit nf4".
        digest: of prompts and references; only equal ones can be compared.
        settings: what else must be equal on both sides.
    """

    name: str
    scores: dict[str, Score]
    rows: tuple[dict[str, Any], ...]
    number_format: str = "unknown"
    digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def exact_match(self) -> Score:
        """Share of answers that equal a reference."""
        return self._score("exact_match")

    @property
    def token_f1(self) -> Score:
        """Mean F1 of shared words."""
        return self._score("token_f1")

    @property
    def stopped(self) -> float:
        """Share of answers that ended by themselves; NaN where nobody knows."""
        known = [row["stopped"] for row in self.rows if row.get("stopped") is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def unscored(self) -> dict[str, int]:
        """Answers without a score, by metric; only metrics that have some."""
        counts = {metric: sum(row.get(metric) is None for row in self.rows) for metric in self.scores}
        return {metric: count for metric, count in counts.items() if count}

    def first(self, count: int) -> "EvalReport":
        """The report on the first `count` answers alone: what a smaller sample would have said."""
        rows = self.rows[:count]
        if not rows:
            raise DataError(f"count={count}: a report on no answers says nothing. It has {len(self.rows)}.")
        scores = {metric: _mean(metric, rows) for metric in self.scores}
        return replace(self, rows=rows, scores=scores, digest=f"{self.digest} to {len(rows)}")

    def save(self, path: str | Path) -> Path:
        """Write the rows as JSONL, whole or not at all; each line also says which evaluation it belongs to."""
        facts = {key: getattr(self, key) for key in ("name", "number_format", "digest", "settings")}
        mark = {"report": facts | {"metrics": list(self.scores), "rows": len(self.rows)}}
        return files.write_jsonl(path, [row | mark for row in self.rows])

    @classmethod
    def load(cls, path: str | Path) -> "EvalReport":
        """Read back what `save` wrote.

        Raises:
            MissingArtifact: no such file.
            DataError: a file that `save` did not write, lines of several evaluations, or not all of one.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingArtifact(f"{path} is no file. EvalReport.save and evaluation.save_reports write one.")
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            marks = [row.pop("report") for row in rows]
            facts = {key: marks[0][key] for key in ("name", "number_format", "digest", "settings")}
            scores = {metric: _mean(metric, rows) for metric in marks[0]["metrics"]}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path} is no evaluation that ftkit wrote, or it is damaged ({type(error).__name__}: {error}). "
                "Evaluate again, or read it with data.load_examples."
            ) from error
        if any(mark != marks[0] for mark in marks):
            raise DataError(f"{path} holds lines of several evaluations. Keep one evaluation a file.")
        lacking = [key for row, key in itertools.product(rows, _ROW) if key not in row]
        if lacking or not isinstance(facts["name"], str) or not isinstance(facts["settings"], dict):
            raise DataError(f"{path} is damaged: {lacking[0] if lacking else 'a name'} is missing. Evaluate again.")
        if not len({str(row["id"]) for row in rows}) == len(rows) == marks[0].get("rows", len(rows)):
            raise DataError(
                f"{path} holds {len(rows)} lines of {marks[0].get('rows', 'unknown')}: it was cut, or lines stand "
                "twice. Evaluate again, or fetch the whole file."
            )
        return cls(scores=scores, rows=tuple(rows), **facts)

    def summary(self) -> dict[str, Any]:
        """Numbers alone, for `summary.json`; None where nothing was scored."""
        numbers = {"name": self.name, "rows": len(self.rows), "stopped": _number(self.stopped)}
        numbers |= {"number_format": self.number_format, "digest": self.digest, "unscored": self.unscored}
        return numbers | {
            metric: {key: _number(value) for key, value in asdict(score).items()}
            for metric, score in self.scores.items()
        }

    def _score(self, metric: str) -> Score:
        if metric not in self.scores:
            raise DataError(
                f"{self.name} was not scored by {metric}; there are: {', '.join(self.scores) or 'no metrics'}. "
                "Name it in evaluate(metrics=...)."
            )
        return self.scores[metric]

    def ending(self) -> tuple[str, int, str]:
        """The last cells of a row about this report: share that stopped, prompts, number format."""
        stopped = "unknown" if math.isnan(self.stopped) else f"{self.stopped:.0%}"
        return stopped, len(self.rows), self.number_format

    def _parts(self) -> list[Table | str]:
        head = ("model", *(f"{spelt(metric)} [95 %]" for metric in self.scores), *_ENDING)
        return [Table(head, [(self.name, *self.scores.values(), *self.ending())]), *left_unscored(self)]


def perplexity(
    model: Any, tokenizer: Any, examples: Any, *, batch_size: int = 8, max_length: int | None = None
) -> float:
    """exp(total negative log-likelihood / number of answer tokens), over the answers in `examples` alone.

    A mean of the examples' own perplexities would weigh short answers more; this does not. 1 is perfect.

    Raises:
        DataError: no example has an answer token.
    """
    rows = [chat.tokenize(row, tokenizer, max_length=max_length) for row in examples]
    sums = answer_nll(model, rows, batch_size=batch_size) if rows else []
    total, count = sum(nll for nll, _ in sums), sum(tokens for _, tokens in sums)
    if count == 0:
        raise DataError("No example has an answer token to measure: is max_length too small?")
    return math.exp(total / count)


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Any,
    *,
    name: str = "model",
    metrics: Sequence[str | Metric] = ("exact_match", "token_f1"),
    normalise: Callable[[str], str] = squad_normalise,
    labels: Sequence[str] | None = None,
    schema: Mapping[str, Any] | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 40,
    progress: bool = False,
) -> EvalReport:
    """Let the model answer each example's prompt and score it against the answer (or what a column `accept` holds).

    The schemas of a row's tools are in its prompt, and a call is compared as a call. What a model reasons before its
    answer is not scored. Rows may have an `id` of their own; rows that share a `cluster`, or a prompt, are one witness.

    Args:
        model: 16-bit on a CPU, where 4-bit generates slowly.
        tokenizer: with a chat template.
        examples: rows with `messages`; the last assistant turn that may be trained is the reference. A text in
            `accept` takes its place, and of a list any text is right.
        name: how reports and figures call this model.
        metrics: names out of `METRICS`, or functions of an answer and its references that give a number, the higher the
            better, or None where they cannot score.
        normalise: `squad_normalise`, or `exact_words` where the format counts.
        labels: for `accuracy` and `macro_f1`, what may be answered; by default what the references hold.
        schema: for the metric `schema`, a JSON schema; a row's own, in a column `schema`, goes first.
        max_new_tokens: most tokens of one answer; a cut answer counts as it stands.
        batch_size: prompts answered at once.
        progress: show a bar.

    Raises:
        DataError: no examples, a row without an answer, an id twice, an unknown metric, or one that fails on the first
            reference. All of it is found before the first answer is generated.
    """
    examples = _rows(examples)
    how = _How(_listed(metrics), normalise, labels, schema, tokenizer)
    asked = how.asked(examples)
    prompts = [prompt(row) for row in examples]
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    report = how.scored(asked, list(answers), name, number_format(model))
    return replace(report, settings=report.settings | {"max_new_tokens": max_new_tokens})


def score_answers(
    answers: Sequence[str | Answer | None],
    examples: Any,
    *,
    name: str = "model",
    metrics: Sequence[str | Metric] = ("exact_match", "token_f1"),
    normalise: Callable[[str], str] = squad_normalise,
    labels: Sequence[str] | None = None,
    schema: Mapping[str, Any] | None = None,
    number_format: str = "unknown",
    tokenizer: Any = None,
) -> EvalReport:
    """Score answers that are there already: from a server, a file, a person. As `evaluate` does it otherwise.

    `answers` are one an example, in order: None where there is none, which is counted as unscored; an empty text is an
    answer. `number_format` is that of the weights that answered, such as "bfloat16", or "api" for a model that others
    serve. With a `tokenizer`, calls of tools count as its template writes them too. All else is as in `evaluate`.

    Raises:
        DataError: as `evaluate`; or not one answer an example.
    """
    examples = _rows(examples)
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise DataError(f"answers is {type(answers).__name__}: a list is wanted, one text an example.")
    if len(answers) != len(examples):
        raise DataError(
            f"There are {len(answers)} answers to {len(examples)} examples; each example wants one, in order, and None "
            "where there is none."
        )
    if odd := [i for i, answer in enumerate(answers, 1) if not isinstance(answer, str | Answer | None)]:
        raise DataError(
            f"Answer {odd[0]} is {str(answers[odd[0] - 1])[:40]!r} and no text ({len(odd)} such). Write it as text, or "
            "None where there is no answer."
        )
    how = _How(_listed(metrics), normalise, labels, schema, tokenizer)
    return how.scored(how.asked(examples), list(answers), name, number_format)


def evaluate_checkpoints(
    place: Run | str | Path,
    examples: Any,
    *,
    metrics: Sequence[str | Metric] = ("exact_match", "token_f1"),
    normalise: Callable[[str], str] = squad_normalise,
    labels: Sequence[str] | None = None,
    schema: Mapping[str, Any] | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 40,
    progress: bool = False,
) -> dict[str, EvalReport]:
    """Evaluate every kept checkpoint of a run, and its adapter, on the same prompts; one is in memory at a time.

    `place` is a run, or a folder that holds folders of adapters; all else is as in `evaluate`. Each is merged into its
    16-bit base. `compare(base, *reports.values())` names the best.

    Returns:
        Reports by the name of the folder, the earliest checkpoint first and `adapter` last.

    Raises:
        MissingArtifact: no adapter there.
    """
    folder = place.path if isinstance(place, Run) else Path(place)
    found = [*folder.glob("*/adapter_config.json"), *(folder / "checkpoints").glob("*/adapter_config.json")]
    adapters = sorted((path.parent for path in found if not path.parent.name.startswith(".")), key=_by_step)
    if not adapters:
        raise MissingArtifact(f"{folder} holds no adapter. training.train writes one, and checkpoints with save_steps.")
    reports = {}
    for adapter in adapters:
        model, tokenizer = load_adapter(adapter, merge=True)
        reports[adapter.name] = evaluate(
            model,
            tokenizer,
            examples,
            name=adapter.name,
            metrics=metrics,
            normalise=normalise,
            labels=labels,
            schema=schema,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        del model
        release_memory()
    return reports


def save_reports(run: Run, **reports: EvalReport) -> Path:
    """Write each report to `eval/<name>.jsonl` and their numbers to `eval/summary.json`, then mark the step as done."""
    if not reports:
        raise DataError("There are no reports to save: save_reports(run, before=..., after=...).")
    for name, report in reports.items():
        report.save(run / f"eval/{name}.jsonl")
    path = files.write_json(run / "eval/summary.json", {name: report.summary() for name, report in reports.items()})
    firsts = {name: next(iter(report.scores.values()), _UNSCORED) for name, report in reports.items()}
    chosen = {name: report.scores.get("exact_match", firsts[name]) for name, report in reports.items()}
    run.finish("evaluate", **{name: _number(score.value) for name, score in chosen.items()})
    return path


def number_format(model: Any) -> str:
    """How the weights that answer are stored: "bfloat16", "float32", "4-bit nf4", "8-bit"."""
    if getattr(model, "is_loaded_in_4bit", False):
        kind = getattr(getattr(model.config, "quantization_config", None), "bnb_4bit_quant_type", "")
        return f"4-bit {kind}".strip()
    if getattr(model, "is_loaded_in_8bit", False):
        return "8-bit"
    sizes: dict[str, int] = {}
    for weight in model.parameters() if hasattr(model, "parameters") else ():
        stored = str(weight.dtype).removeprefix("torch.")
        sizes[stored] = sizes.get(stored, 0) + weight.numel()
    return max(sizes, key=sizes.__getitem__) if sizes else "unknown"


@dataclass(frozen=True)
class _How:
    """How answers are scored."""

    metrics: Sequence[str | Metric]
    normalise: Callable[[str], str]
    labels: Sequence[str] | None
    schema: Mapping[str, Any] | None
    tokenizer: Any

    def asked(self, examples: Any) -> list[dict[str, Any]]:
        """What is asked and wanted, row by row, with all that can be wrong before an answer is there."""
        rows: list[dict[str, Any]] = []
        firsts: dict[str, str] = {}
        for number, row in enumerate(examples, 1):
            question = prompt(row)
            written = json.dumps(question, sort_keys=True, ensure_ascii=False, default=str)
            own = row.get("id")
            rows.append(
                {
                    "id": str(number if own in (None, "") else own),
                    "prompt": question["messages"][-1]["content"] if question["messages"] else "",
                    "expected": _references(number, row, self.tokenizer),
                    "schema": row.get("schema") or self.schema,
                    "asked": written,
                }
            )
            told = rows[-1]["expected"][: None if row.get("accept") else 1]  # what follows is this template's spelling
            rows[-1]["wanted"] = json.dumps(told)
            shared = row.get("cluster")
            first = firsts.setdefault(written, rows[-1]["id"])
            rows[-1]["cluster"] = str(first if shared in (None, "") else shared)
        counted: dict[str, int] = {}
        for row in rows:
            counted[row["id"]] = counted.get(row["id"], 0) + 1
        if twice := [name for name, count in counted.items() if count > 1]:
            raise DataError(
                f"{len(twice)} ids stand more than once (the first is {twice[0][:40]!r}), so answers could not be "
                "told apart. Give each row an id of its own, or leave the column out; answers to one prompt may "
                "share a cluster."
            )
        self._refuse(rows)
        return rows

    def names(self) -> list[str]:
        """The metrics' names, in order."""
        return [metric if isinstance(metric, str) else getattr(metric, "__name__", "own") for metric in self.metrics]

    def scored(
        self, asked: list[dict[str, Any]], answers: list[str | Answer | None], name: str, stored: str
    ) -> EvalReport:
        """The report on these answers."""
        labels = self._labels(asked)
        failures: dict[str, list[str]] = {}
        rows = []
        for row, given in zip(asked, answers, strict=True):
            said = Answer(given, 0, False) if isinstance(given, str) else given
            made = isinstance(given, Answer)
            scored = {
                "id": row["id"],
                "cluster": row["cluster"],
                "prompt": row["prompt"],
                "expected": row["expected"],
                "answer": said.text if said else None,
                "stopped": said.stopped if said and made else None,
                "tokens": said.tokens if said and made else None,
            }
            if {"accuracy", "macro_f1"} & set(self.names()):
                scored["label"] = texts.label_in(said.text, labels, self.normalise) if said else None
            for metric, called in zip(self.metrics, self.names(), strict=True):
                if called == "stopped":
                    continue
                value, why = self._value(metric, scored, row) if said else (None, "")
                scored[called] = value
                if why:
                    failures.setdefault(called, []).append(f"row {row['id']}: {why}")
            rows.append(scored)
        for called, reasons in failures.items():
            warnings.warn(
                f"{called} could not score {len(reasons)} of {len(rows)} answers; they count as unscored. First, "
                f"{reasons[0]}.",
                FtkitWarning,
                stacklevel=3,
            )
        told = "\n".join(row["id"] + row["asked"] + row["wanted"] for row in asked)
        digest = hashlib.sha256(told.encode("utf-8", "replace"))
        scores = {called: _mean(called, rows) for called in self.names()}
        settings = {"normalise": getattr(self.normalise, "__name__", "own")}
        return EvalReport(name, scores, tuple(rows), stored, digest.hexdigest()[:12], settings)

    def _labels(self, asked: list[dict[str, Any]]) -> list[str]:
        return list(self.labels or dict.fromkeys(itertools.chain.from_iterable(row["expected"] for row in asked)))

    def _refuse(self, asked: list[dict[str, Any]]) -> None:
        """Stop for a metric that cannot work, before an hour of answers is generated."""
        names = self.names()
        if odd := [name for name in self.metrics if isinstance(name, str) and name not in METRICS]:
            raise DataError(
                f"metrics={odd[0]!r} is no metric; there are: {', '.join(METRICS)}, and functions of your own."
            )
        if clash := [name for name in names if name in _OWN and name != "stopped"] + _doubled(names):
            raise DataError(
                f"A metric called {clash[0]!r} would overwrite another entry of a row. Rename the function."
            )
        if not names:
            raise DataError("metrics is empty: name at least one, such as 'exact_match'.")
        if "schema" in names and not any(row["schema"] for row in asked):
            raise DataError("The metric schema needs a JSON schema: hand in schema=, or give rows a column `schema`.")
        if self.labels is not None and {"accuracy", "macro_f1"} & set(names):
            self._refuse_labels(asked, self.labels)
        elif {"accuracy", "macro_f1"} & set(names) and len(labels := self._labels(asked)) > max(20, len(asked) // 2):
            raise DataError(
                f"accuracy and macro_f1 want answers out of a few labels, and there are {len(labels)} different ones "
                f"in {len(asked)} rows, such as {labels[0][:40]!r}. Take exact_match, or name them: labels=[...]."
            )
        for metric, called in zip(self.metrics, names, strict=True):
            row = next((row for row in asked if called != "schema" or row["schema"]), asked[0])
            if called in ("stopped", "accuracy", "macro_f1"):
                continue
            _, why = self._value(metric, {"answer": row["expected"][0]}, row)
            if why:
                raise DataError(f"{called} fails on the reference of row {row['id']} itself: {why}.")

    def _refuse_labels(self, asked: list[dict[str, Any]], labels: Sequence[str]) -> None:
        """Stop for labels that no right answer could name."""
        if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
            raise DataError(f"labels={labels!r}: a list of texts is wanted, such as ['spam', 'ham'].")
        known = set(map(self.normalise, labels))
        if odd := [row for row in asked if not known & set(map(self.normalise, row["expected"]))]:
            raise DataError(
                f"The right answer of row {odd[0]['id']}, {odd[0]['expected'][0][:40]!r}, is none of the labels "
                f"{', '.join(map(repr, labels))} ({len(odd)} such rows). Name every label."
            )

    def _value(self, metric: str | Metric, scored: dict[str, Any], row: dict[str, Any]) -> tuple[float | None, str]:
        """What a metric says of an answer, and why it could say nothing."""
        answer, wanted = scored["answer"], row["expected"]
        try:
            match metric:
                case "exact_match":
                    return texts.exact_match(answer, wanted, self.normalise), ""
                case "token_f1":
                    return texts.token_f1(answer, wanted, self.normalise), ""
                case "accuracy" | "macro_f1":
                    return float(scored["label"] in map(self.normalise, wanted)), ""
                case "json_valid":
                    return texts.json_valid(answer), ""
                case "schema":
                    return (texts.keeps_schema(answer, _schema(row["schema"])), "") if row["schema"] else (None, "")
                case "tool_calls":
                    return texts.tool_calls(answer, wanted), ""
                case "rouge_l":
                    return texts.rouge_l(answer, wanted), ""
                case "chrf":
                    return texts.chrf(answer, wanted), ""
            value = metric(answered(answer), list(wanted))  # type: ignore[operator]
            value = None if value is None else float(value)
        except _FAILURES as error:
            return None, f"{type(error).__name__}: {error}"
        if value is not None and not math.isfinite(value):
            return None, f"it gave {value}, which is no number; None says that an answer cannot be scored"
        return value, ""


def _rows(examples: Any) -> list[Mapping[str, Any]]:
    """Examples as rows, all of which hold messages."""
    if isinstance(examples, str | Mapping) or not isinstance(examples, Iterable):
        raise DataError(
            f"examples is {type(examples).__name__}: rows with messages are wanted, as load_examples gives."
        )
    rows = list(examples)
    if not rows:
        raise DataError("There are no examples to evaluate on.")
    for number, row in enumerate(rows, 1):
        turns = row.get("messages") if isinstance(row, Mapping) else None
        if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
            raise DataError(
                f"Row {number} has no messages. Read the examples with data.load_examples, which makes them."
            )
    return rows


def _listed(metrics: Any) -> Sequence[str | Metric]:
    return [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics or ())


def _schema(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given


def _doubled(names: Sequence[str]) -> list[str]:
    return [name for place, name in enumerate(names) if name in names[:place]]


def _mean(metric: str, rows: Sequence[Mapping[str, Any]]) -> Score:
    """The mean of what a metric says of all rows that it scored."""
    scored = [row for row in rows if row.get(metric) is not None]
    if not scored:
        return _UNSCORED
    clusters = [row["cluster"] for row in scored]
    if metric == "macro_f1":
        return statistics.macro_f1(*labels_of(scored), clusters)
    return statistics.interval([float(row[metric]) for row in scored], clusters)


def labels_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The wanted label of each row, and the one that was read in the answer ("" for none)."""
    wanted = [squad_normalise(row["expected"][0]) for row in rows]
    said = [squad_normalise(row["label"] or "") for row in rows]
    return wanted, [is_ if row["macro_f1"] else was for is_, was, row in zip(wanted, said, rows, strict=True)]


def spelt(metric: str) -> str:
    """A metric's name for readers."""
    known = {
        "token_f1": "token F1",
        "macro_f1": "macro-F1",
        "rouge_l": "ROUGE-L",
        "chrf": "chrF",
        "json_valid": "valid JSON",
    }
    return known.get(metric, metric.replace("_", " "))


def left_unscored(*reports: EvalReport) -> list[str]:
    """What a table does not show: the answers that no metric could score, and how far its intervals can be trusted."""
    prompts = min((len({str(row.get("cluster")) for row in report.rows}) for report in reports), default=0)
    rough = [
        f"{prompts} prompts are few: under {ENOUGH}, intervals called 95 % hold the truth in 90 to 100 % of samples, "
        "and under 5 in fewer still."
    ]
    said = []
    for report in reports:
        for metric, count in report.unscored.items():
            of = f"{count} of {len(report.rows)}"
            said.append(f"{report.name}: {of} answers are unscored by {metric}; its mean is over the others.")
    return said + (rough if prompts < ENOUGH else [])


def _by_step(adapter: Path) -> tuple[int, str]:
    step = adapter.name.rpartition("-")[2]
    return (int(step), "") if step.isdecimal() else (2**60, adapter.name)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _references(number: int, row: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """What is right for a row: what it accepts, or its answer; a call in the Hermes convention and the template's."""
    if accepted := row.get("accept"):
        if not isinstance(accepted, str | list) or (isinstance(accepted, list) and None in accepted):
            raise DataError(
                f"Row {number} has accept={str(accepted)[:40]!r}, and a text or a list of texts is wanted there: write "
                "it in quotes, or give the column another name."
            )
        return [accepted] if isinstance(accepted, str) else list(map(str, accepted))
    turns = row["messages"]
    last = len(prompt(turns))
    if last == len(turns) or (turns[last].get("content") is None and not turns[last].get("tool_calls")):
        raise DataError(f"Row {number} has no answer to compare with; perplexity can measure a document.")
    said = [answered(chat.fold_tools([turns[last]])[0]["content"])]
    if turns[last].get("tool_calls"):
        asked = [{**turn, "train": False} for turn in turns[:last]]
        tokens = chat.tokenize({"messages": [*asked, turns[last]], "tools": row.get("tools")}, tokenizer)
        written = [label for label in tokens["labels"] if label != chat.IGNORED]
        said.append(answered(tokenizer.decode(written, skip_special_tokens=True)))
    return said
