"""Approaches measured one by one, each kept in its folder: a kill loses at most the one that was being measured."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import data, evaluation, files, models, training
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.decision.asking import WAYS, Task, Way
from ftkit.decision.constraints import Constraint
from ftkit.decision.verdicts import Approach
from ftkit.errors import PreflightError, TrainingError
from ftkit.hardware import release_memory
from ftkit.models import Answer
from ftkit.runs import Run, remove

_SEARCH_MINUTES = 2.0  # where there is no fine-tune whose minutes could be the budget


@dataclass(frozen=True)
class Job:
    """One approach to be measured, or one point of the learning curve."""

    name: str
    way: Way
    asked: list[dict[str, Any]]  # empty for a searched prompt, until it is found
    search_s: float  # seconds a question that finding passages and examples takes
    train: Any = None
    val: Any = None
    config: TrainConfig | None = None


@dataclass(frozen=True)
class Bench:
    """Where approaches are measured: the folder that keeps them, and the one model that is loaded."""

    task: Task
    folder: Path
    key: str  # of the base model and what else all approaches share
    constraint: Constraint | None
    candidates: Sequence[str]  # system prompts to try
    search_minutes: float | None
    loaded: dict[str, Any]
    left_out: dict[str, str]

    def measure(self, job: Job, minutes: float, watch: Any) -> Approach | None:
        """Take the approach from the folder, or measure it and keep it; None where it cannot be trained."""
        task, folder = self.task, self.folder / folder_name(job.name)
        key = self._key(job)
        if (kept := self._kept(job, folder, key)) is not None:
            return kept
        setup, notes, asked = 0.0, [], job.asked
        if job.config is not None:
            try:
                setup = self._train(job, key, watch)
            except (PreflightError, TrainingError) as error:
                self.left_out[job.name] = f"training it failed: {error}"
                return None
        elif "model" not in self.loaded:
            self.loaded["model"] = models.load(task.base, in_16bit(task.config))[0]
        if job.way.searched:
            system, setup, said = self._search(minutes)
            asked = [task.asked(job.way, row, system) for row in task.splits.test]
            notes.append(said)
        model, constraint = self.loaded["model"], self.constraint if job.way.constrained else None
        began = time.perf_counter()
        answers = task.generate(model, asked, constraint, task.batch_size)
        each_s = (time.perf_counter() - began) / len(asked) + job.search_s
        alone = []
        for question in asked[: task.timed]:
            began = time.perf_counter()
            task.generate(model, [question], constraint, 1)
            alone.append(time.perf_counter() - began + job.search_s)
        if job.config is not None:
            self.loaded.clear()
            release_memory()
        if cut := sum(not answer.stopped for answer in answers):
            notes.append(f"{cut} of {len(answers)} answers were cut at {task.max_new_tokens} tokens.")
        facts = {
            "tuned": job.way.tuned,
            "prompt_tokens": sum(map(task.tokens, asked)) / len(asked),
            "answer_tokens": sum(answer.tokens for answer in answers) / len(answers),
            "latency_s": sum(alone) / len(alone) if alone else None,
            "minutes_per_1000": each_s * 1000 / 60,
            "setup_minutes": setup,
            "note": " ".join(notes),
        }
        with files.folder(folder) as working:
            files.write_jsonl(working / "answers.jsonl", [vars(answer) for answer in answers])
            files.write_json(working / "approach.json", {"key": key, "facts": facts})
        return self._kept(job, folder, key)

    def _key(self, job: Job) -> str:
        """Changes with the weights, and with all that the model is asked, trained on and allowed to say."""
        told: list[Any] = [self.key, self.task.max_new_tokens, self.task.batch_size, job.asked]
        if job.way.constrained and self.constraint:
            told.append(self.constraint.grammar)
        if job.config is not None:
            told += [job.config.digest(), data.digest(job.train, job.val)]
        if job.way.searched:
            asked = [self.task.asked(job.way, row) for row in self.task.splits.test]
            metrics = [getattr(metric, "__name__", metric) for metric in self.task.scoring["metrics"]]
            told += [asked, list(self.candidates), self.search_minutes, metrics, data.digest(self.task.splits.val)]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def _kept(self, job: Job, folder: Path, key: str) -> Approach | None:
        """What the folder holds of this approach, where it is whole and of the same key."""
        if not folder.is_dir() or files.problem(folder) is not None:
            return None
        known = json.loads((folder / "approach.json").read_text(encoding="utf-8"))
        if known["key"] != key:
            return None
        lines = (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n")
        answers = [Answer(**json.loads(line)) for line in lines if line]
        report = evaluation.score_answers(answers, self.task.splits.test, name=job.name, **self.task.scoring)
        facts = {name: value for name, value in known["facts"].items() if value is not None}
        return Approach(name=job.name, report=report, **facts)

    def _train(self, job: Job, key: str, watch: Any) -> float:
        """Load the base with a trained adapter merged into it; minutes of the training."""
        assert job.config is not None
        self.loaded.clear()
        release_memory()
        runs = self.folder / "runs"
        inner = Run.create(f"{folder_name(job.name)}-{key[:8]}", runs)
        if not inner.finished("train"):
            model, tokenizer = models.load(self.task.base, job.config)
            # one passage stands before many questions, which were compared without it
            searched = data.THRESHOLD if job.way.passages else self.task.splits.searched
            parts = Splits(job.train, job.val, self.task.splits.test, searched)
            if training.train(model, tokenizer, parts, job.config, inner, watch=watch).stopped:
                raise KeyboardInterrupt
            del model
            release_memory()
        for old in runs.glob(f"{folder_name(job.name)}-????????"):
            if old != inner.path:
                remove(old)
        merged = models.load_adapter(inner / "adapter", in_16bit(job.config), merge=True)
        self.loaded["model"] = merged[0]
        return float(inner.facts["train"]["seconds"]) / 60

    def _search(self, minutes: float) -> tuple[str, float, str]:
        """The system prompt that does best on val within so many minutes, how long it took, and what was tried."""
        task = self.task
        val = task.splits.val.select(range(min(len(task.splits.val), task.config.max_eval_examples)))
        metrics = dict.fromkeys((*task.scoring["metrics"], "token_f1"))  # words shared tell apart what scores the same
        scoring = {**task.scoring, "metrics": tuple(metrics)}
        began = time.perf_counter()
        tried: list[tuple[Any, ...]] = []
        for system in ("", *self.candidates):
            if len(tried) > 1 and time.perf_counter() - began >= 60 * minutes:
                break
            asked = [task.asked(WAYS["prompt"], row, system) for row in val]
            report = evaluation.score_answers(
                task.generate(self.loaded["model"], asked, None, task.batch_size), val, name="prompt", **scoring
            )
            means = [score.value if score.value == score.value else -1.0 for score in report.scores.values()]
            tried.append((*means, -len(system), system))
        spent, best = (time.perf_counter() - began) / 60, str(max(tried)[-1])
        ended = "all that there were" if len(tried) > len(self.candidates) else f"in a budget of {minutes:.1f} min"
        chosen = f"the best is “{best}”" if best else "none did better than having none"
        tested = f"{len(tried) - 1} of {len(self.candidates)} system prompts tried on {len(val)} val rows"
        return best, spent, f"{tested}, {ended}; {chosen}."


def measured(bench: Bench, jobs: Sequence[Job], progress: bool) -> dict[str, Approach]:
    """Every job by its name: first what asks the base as it is, then what is trained, then what searches as long."""
    from tqdm.auto import tqdm

    found: dict[str, Approach] = {}
    units = {job.name: _units(bench.task, job) for job in jobs}
    with tqdm(total=sum(units.values()), unit="row", smoothing=0, disable=not progress) as bar:
        for job in sorted(jobs, key=lambda job: (job.way.searched, job.way.tuned)):
            bar.set_description(job.name)
            at = int(bar.n)

            def watch(points: Any, steps: int, at: int = at, whole: int = units[job.name]) -> None:
                bar.update(max(0, at + int(0.8 * whole * min(1.0, len(points) / max(1, steps))) - bar.n))

            tuned = found.get("fine_tune") or found.get("rag_fine_tune")
            budget = bench.search_minutes or (tuned.setup_minutes if tuned else _SEARCH_MINUTES)
            if (one := bench.measure(job, budget, watch)) is not None:
                found[job.name] = one
            bar.update(at + units[job.name] - bar.n)
    return found


def _units(task: Task, job: Job) -> int:
    """About how long a job takes, in answered rows; training on a row takes about as long as answering one."""
    config, answered = job.config or task.config, len(task.splits.test) + 2 * task.timed
    if not (job.way.tuned or job.way.searched):
        return answered
    rows = len(job.train if job.way.tuned else task.splits.train)
    steps = config.max_steps * config.effective_batch_size if config.max_steps > 0 else config.num_train_epochs * rows
    return answered + int(steps)


def in_16bit(config: TrainConfig) -> TrainConfig:
    """The settings in which every approach answers: 4-bit weights cannot be merged, and are slow on a CPU."""
    return config.replace(load_in_4bit=False, backend="transformers")


def folder_name(name: str) -> str:
    """The folder that keeps an approach."""
    return name.replace(" ", "_")
