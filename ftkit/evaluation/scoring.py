"""Is it better? Exact match, token F1 and perplexity, each with an interval, on the same prompts before and after."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftkit import chat, files, tables
from ftkit.data import prompt
from ftkit.errors import DataError
from ftkit.evaluation.metrics import (
    Score,
    answered,
    difference_interval,
    exact_match,
    interval,
    squad_normalise,
    token_f1,
)
from ftkit.models import answer_nll, generate
from ftkit.runs import Run
from ftkit.tables import Table

_HEAD = ("model", "exact match [95 %]", "token F1 [95 %]", "stopped by itself", "prompts")


@tables.shown
@dataclass(frozen=True)
class EvalReport:
    """How one model answered one set of prompts; `rows` holds every answer with its own scores."""

    name: str
    exact_match: Score
    token_f1: Score
    stopped: float
    rows: tuple[dict[str, Any], ...]

    def save(self, path: str | Path) -> Path:
        """Write the rows as JSONL, whole or not at all."""
        return files.write_jsonl(path, list(self.rows))

    def summary(self) -> dict[str, Any]:
        """Numbers alone, for `summary.json`."""
        numbers = {"name": self.name, "rows": len(self.rows), "stopped": self.stopped}
        return numbers | {"exact_match": asdict(self.exact_match), "token_f1": asdict(self.token_f1)}

    def _row(self) -> tuple[Any, ...]:
        return self.name, self.exact_match, self.token_f1, f"{self.stopped:.0%}", len(self.rows)

    def _parts(self) -> list[Table | str]:
        return [Table(_HEAD, [self._row()])]


@tables.shown
@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts; the difference is paired, so what the prompts share cancels."""

    before: EvalReport
    after: EvalReport
    difference: Score

    @property
    def better(self) -> bool:
        """Whether the whole interval of the difference lies above zero."""
        return self.difference.low > 0

    def verdict(self) -> str:
        """One plain sentence."""
        d = self.difference
        change = f"{100 * d.value:+.1f} points of exact match [{100 * d.low:+.0f}, {100 * d.high:+.0f}]"
        change += f" on {len(self.after.rows)} prompts"
        if self.better:
            return f"{self.after.name} is better than {self.before.name}: {change}."
        if d.high < 0:
            return f"{self.after.name} is WORSE than {self.before.name}: {change}. Do not ship it."
        return f"No difference between {self.before.name} and {self.after.name} can be told from this sample: {change}."

    def examples(self, n: int = 3) -> "Examples":
        """The first `n` prompts with both answers beside the wanted one."""
        pairs = list(zip(self.before.rows, self.after.rows, strict=True))[:n]
        return Examples(self.before.name, self.after.name, tuple(pairs))

    def _parts(self) -> list[Table | str]:
        return [Table(_HEAD, [self.before._row(), self.after._row()]), self.verdict()]


@dataclass(frozen=True)
class Examples:
    """Answers of two models to the same prompts, to be read."""

    before_name: str
    after_name: str
    pairs: tuple[tuple[dict[str, Any], dict[str, Any]], ...]

    def __str__(self) -> str:
        blocks = [
            f"PROMPT\n{b['prompt']}\nWANTED\n{b['expected'][0]}\n{self.before_name.upper()} {_tick(b)}\n{b['answer']}\n"
            f"{self.after_name.upper()} {_tick(a)}\n{a['answer']}"
            for b, a in self.pairs
        ]
        return tables.visible("\n\n".join(blocks))

    def _repr_html_(self) -> str:
        head = ("prompt", "wanted", self.before_name, self.after_name)
        rows = [
            (b["prompt"], b["expected"][0], f"{_tick(b)} {b['answer']}", f"{_tick(a)} {a['answer']}")
            for b, a in self.pairs
        ]
        return Table(head, rows, prose=True)._repr_html_()


def perplexity(
    model: Any, tokenizer: Any, examples: Any, *, batch_size: int = 8, max_length: int | None = None
) -> float:
    """exp(total negative log-likelihood / number of answer tokens), over the answers in `examples` alone.

    A mean of the examples' own perplexities would weigh short answers more; this does not. 1 is perfect.

    Raises:
        DataError: no example has an answer token.
    """
    rows = [chat.tokenize(row, tokenizer, max_length=max_length) for row in examples]
    sums = answer_nll(model, rows, batch_size=batch_size)
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
    normalise: Callable[[str], str] = squad_normalise,
    max_new_tokens: int = 128,
    batch_size: int = 40,
    progress: bool = False,
) -> EvalReport:
    """Let the model answer each example's prompt and score it against the answer (or what a column `accept` holds).

    The schemas of a row's tools are in its prompt, and a call is compared as a call. What a model reasons before its
    answer is not scored.

    Args:
        model: 16-bit on a CPU, where 4-bit generates slowly.
        tokenizer: with a chat template.
        examples: rows with `messages`; the last assistant turn that may be trained is the reference. A text in
            `accept` takes its place, and of a list any text is right.
        name: how reports and figures call this model.
        normalise: `squad_normalise`, or `exact_words` where the format counts.
        max_new_tokens: most tokens of one answer; a cut answer counts as it stands.
        batch_size: prompts answered at once.
        progress: show a bar.

    Raises:
        DataError: no examples, or a row without an answer.
    """
    if len(examples) == 0:
        raise DataError("There are no examples to evaluate on.")
    prompts = [prompt(row) for row in examples]
    expected = [_references(number, row, tokenizer) for number, row in enumerate(examples, 1)]
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    rows: tuple[dict[str, Any], ...] = tuple(
        {
            "prompt": asked["messages"][-1]["content"] if asked["messages"] else "",
            "expected": list(references),
            "answer": answer.text,
            "stopped": answer.stopped,
            "tokens": answer.tokens,
            "exact_match": exact_match(answered(answer.text), references, normalise),
            "token_f1": token_f1(answered(answer.text), references, normalise),
        }
        for asked, references, answer in zip(prompts, expected, answers, strict=True)
    )
    exact, f1 = (interval([row[score] for row in rows]) for score in ("exact_match", "token_f1"))
    return EvalReport(name, exact, f1, sum(row["stopped"] for row in rows) / len(rows), rows)


def _references(number: int, row: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """What is right for a row: what it accepts, or its answer; a call in the Hermes convention and the template's."""
    if accepted := row.get("accept"):
        if not isinstance(accepted, str | list):
            raise DataError(
                f"Row {number} has accept={str(accepted)[:40]!r}, and a text or a list of texts is wanted there: write "
                "it in quotes, or give the column another name."
            )
        return [accepted] if isinstance(accepted, str) else list(map(str, accepted))
    turns = row["messages"]
    last = len(prompt(turns))
    if last == len(turns):
        raise DataError(f"Row {number} has no answer to compare with; perplexity can measure a document.")
    said = [answered(chat.fold_tools([turns[last]])[0]["content"])]
    if turns[last].get("tool_calls"):
        asked = [{**turn, "train": False} for turn in turns[:last]]
        tokens = chat.tokenize({"messages": [*asked, turns[last]], "tools": row.get("tools")}, tokenizer)
        written = [label for label in tokens["labels"] if label != chat.IGNORED]
        said.append(answered(tokenizer.decode(written, skip_special_tokens=True)))
    return said


def compare(before: EvalReport, after: EvalReport) -> Comparison:
    """Pair two reports on the same prompts; the difference is of exact match.

    Raises:
        DataError: the reports are on different prompts.
    """
    if [r["prompt"] for r in before.rows] != [r["prompt"] for r in after.rows]:
        raise DataError(
            f"{before.name} and {after.name} answered different prompts; evaluate both on the same examples."
        )
    pairs = zip(before.rows, after.rows, strict=True)
    return Comparison(before, after, difference_interval([a["exact_match"] - b["exact_match"] for b, a in pairs]))


def save_reports(run: Run, **reports: EvalReport) -> Path:
    """Write each report to `eval/<name>.jsonl` and their numbers to `eval/summary.json`, then mark the step as done."""
    for name, report in reports.items():
        report.save(run / f"eval/{name}.jsonl")
    path = files.write_json(run / "eval/summary.json", {name: report.summary() for name, report in reports.items()})
    run.finish("evaluate", **{name: report.exact_match.value for name, report in reports.items()})
    return path


def _tick(row: Mapping[str, Any]) -> str:
    return "✓" if row["exact_match"] else "✗"
