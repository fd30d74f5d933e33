"""Public benchmarks through lm-eval, in process, as reports like any other: `compare` and `gate` take them.

`mmlu_dev` needs no network: the 282 questions that lm-eval's own wheel carries as examples of MMLU, five a subject,
asked without examples. They are few, and chance alone is right in a quarter of them; MMLU itself has 14,042.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit import models
from ftkit.errors import DataError, MissingExtra
from ftkit.evaluation.scoring import EvalReport, number_format
from ftkit.evaluation.statistics import interval

MMLU_DEV = "mmlu_dev"
_CHOICE = re.compile(r"\s*\(([A-E])\)\s*")
_RIGHT = re.compile(r"answer is \(?([A-E])\)?")
_TASK = {
    "task": MMLU_DEV,
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\n{{listed}}\nAnswer:",
    "doc_to_choice": "letters",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "num_fewshot": 0,
}


def standard_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Mapping[str, Any]] = (MMLU_DEV,),
    *,
    name: str = "model",
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
) -> dict[str, EvalReport]:
    """Run lm-eval's tasks on a model in memory; one report a task, with what each question scored.

    Args:
        model: with or without an adapter.
        tokenizer: its own.
        tasks: "mmlu_dev", names of lm-eval's tasks (most fetch their questions from the Hub), or task configs of your
            own as dicts.
        name: how reports call this model.
        limit: only the first questions of each task.
        num_fewshot: examples before each question; by default the task's own number.
        batch_size: questions at once.

    Raises:
        MissingExtra: lm-eval is not installed.
        DataError: an unknown task, or one that scores no single questions.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra(
            'Standard tasks need lm-eval, which is not installed. Run: pip install "lm-eval>=0.4.13,<0.5"'
        )
    with models.quietly():
        from lm_eval import simple_evaluate  # type: ignore[import-untyped]
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
        from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

        foreign = [task for task in tasks if isinstance(task, str) and task != MMLU_DEV]
        manager = TaskManager(include_defaults=bool(foreign))  # reading them all takes many seconds
        if odd := [task for task in foreign if task not in manager.all_tasks]:
            raise DataError(
                f"lm-eval has no task {odd[0]!r}. `lm-eval ls tasks` lists them; {MMLU_DEV!r} needs no network."
            )
        wanted = [_mmlu_dev() if task == MMLU_DEV else task for task in tasks]
        with models.evaluating(model):
            result = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=wanted,
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=manager,
            )
    samples = (result or {}).get("samples") or {}
    if not samples:
        raise DataError(f"lm-eval scored no questions of {', '.join(map(str, tasks))}.")
    settings = {"limit": limit, "num_fewshot": num_fewshot}
    return {task: _report(task, rows, name, number_format(model), settings) for task, rows in samples.items()}


def mmlu_questions() -> list[dict[str, Any]]:
    """The questions of MMLU that lm-eval's wheel holds: `id`, `subject`, `question`, `choices`, `answer` (from 0).

    Raises:
        MissingExtra: lm-eval is not installed.
        DataError: this version of lm-eval holds them in another form.
    """
    import yaml

    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            'MMLU\'s questions stand in lm-eval, which is not installed. Run: pip install "lm-eval>=0.4.13,<0.5"'
        )
    found = []
    for path in sorted(Path(spec.origin).parent.glob("tasks/mmlu/flan_cot_fewshot/mmlu_*.yaml")):
        subject = path.stem.removeprefix("mmlu_")
        samples = yaml.safe_load(path.read_text(encoding="utf-8")).get("fewshot_config", {}).get("samples", [])
        for number, sample in enumerate(samples, 1):
            question, *parts = _CHOICE.split(sample["question"].strip())
            right = _RIGHT.search(sample["target"])
            if right and right[1] in parts[::2]:
                place = parts[::2].index(right[1])
                row = {"id": f"{subject}-{number}", "subject": subject, "question": question.strip()}
                found.append(row | {"choices": parts[1::2], "answer": place})
    if not found:
        raise DataError("This version of lm-eval holds no questions of MMLU where 0.4.13 has them. Install 0.4.13.")
    return found


def _mmlu_dev() -> dict[str, Any]:
    """lm-eval's config of the local task; its questions come from memory."""
    from datasets import Dataset

    rows = []
    for row in mmlu_questions():
        letters = list("ABCDE"[: len(row["choices"])])
        listed = [f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=True)]
        rows.append(row | {"letters": letters, "listed": "\n".join(listed)})
    return _TASK | {"custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}}


def _report(
    task: str, samples: Sequence[Mapping[str, Any]], name: str, stored: str, settings: dict[str, Any]
) -> EvalReport:
    """A report from lm-eval's log of single questions; the first filter's, where there are several."""
    first = samples[0].get("filter")
    kept = sorted((s for s in samples if s.get("filter") == first), key=lambda s: s["doc_id"])
    measured = [metric for metric in kept[0].get("metrics", ()) if isinstance(kept[0].get(metric), bool | int | float)]
    if not measured:
        raise DataError(f"{task} scores whole sets and no single questions, so no pairs can be compared.")
    rows = tuple(_row(sample, measured) for sample in kept)
    asked = json.dumps([[row["id"], row["prompt"], row["expected"]] for row in rows], ensure_ascii=False)
    return EvalReport(
        name=name,
        scores={metric: interval([row[metric] for row in rows]) for metric in measured},
        rows=rows,
        number_format=stored,
        digest=hashlib.sha256(asked.encode()).hexdigest()[:12],
        settings=settings,
    )


def _row(sample: Mapping[str, Any], measured: Sequence[str]) -> dict[str, Any]:
    """One question; of several choices the likeliest is the answer."""
    asked = str(next(iter(sample["arguments"]), ("",))[0]) if sample.get("arguments") else ""
    answers = [response[0] if isinstance(response, list | tuple) else response for response in sample["filtered_resps"]]
    if all(isinstance(answer, float) for answer in answers) and len(answers) > 1:
        choices = [str(argument[1]).strip() for argument in sample["arguments"]]
        answer = choices[max(range(len(answers)), key=answers.__getitem__)]
        expected = choices[sample["target"]] if isinstance(sample["target"], int) else str(sample["target"])
    else:
        answer, expected = str(answers[0]), str(sample["target"])
    id = str(sample["doc"].get("id") or sample["doc_id"])
    shown = {"id": id, "cluster": id, "prompt": asked, "expected": [expected], "answer": answer}
    return shown | {"stopped": None, "tokens": None} | {metric: float(sample[metric]) for metric in measured}
