"""Every approach measured on one held-out set, by one metric and one decoding, and what follows from it.

Refuses what would void the comparison before anything is spent. What is asked stands in `asking`, the measuring in
`measuring`, the verdict in `verdicts`.
"""

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ftkit import chat, data, evaluation, files, models
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.decision.asking import WAYS, Task, Way, answer_turn, made_prompts, questions_of
from ftkit.decision.constraints import Constraint
from ftkit.decision.embedding import EMBEDDER
from ftkit.decision.measuring import Bench, Job, folder_name, in_16bit, measured
from ftkit.decision.retrieval import Index
from ftkit.decision.verdicts import Approach, Decision, Terms
from ftkit.errors import ConfigError, DataError
from ftkit.hardware import detect
from ftkit.runs import Run

APPROACHES = tuple(WAYS)
_FORMAT = 1  # of what is kept of an approach


def compare_approaches(
    base: str | None,
    splits: Splits,
    run: Run,
    *,
    approaches: Sequence[str] = APPROACHES,
    metric: str | Callable[[str, list[str]], float | None] = "exact_match",
    normalise: Callable[[str], str] = evaluation.squad_normalise,
    labels: Sequence[str] | None = None,
    documents: Any = None,
    answer_format: Mapping[str, Any] | str | None = None,
    task: str = "",
    system_prompts: Sequence[str] = (),
    search_minutes: float | None = None,
    config: TrainConfig | None = None,
    curve: Sequence[float] = (0.25, 0.5),
    shots: int = 4,
    passages: int = 3,
    embedder: str | None = EMBEDDER,
    max_length: int = 2048,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    timed: int = 2,
    terms: Terms | None = None,
    groups: str | None = None,
    seed: int = 42,
    progress: bool = False,
) -> Decision:
    """Measure approaches on `splits.test`, and say which one to take.

    What each approach answered is kept in `run`, and what was decided by each metric in `decision/<metric>.json`: after
    a kill, or with other terms or another metric, the same call answers only what is missing or was made of other data,
    settings or weights.

    Args:
        base: of the model, as in `models.load`; None takes the one that suits this machine.
        splits: examples and fine-tunes come from `train`, the system prompt is chosen on `val`, all is measured on
            `test`.
        run: the folder that keeps answers, adapters and the decision.
        approaches: names out of `APPROACHES`; the first is what the others are shown beside.
        metric: the one that decides; a name or a function as in `evaluation.evaluate`.
        normalise: as in `evaluation.evaluate`.
        labels: as in `evaluation.evaluate`.
        documents: where the answers stand: an `Index`, or what `Index.build` reads.
        answer_format: a JSON schema (a dict), a regular expression, or a Lark grammar with a rule `start:`.
        task: what is wanted, in a sentence or two, from which system prompts are made.
        system_prompts: those to try, in place of made ones.
        search_minutes: for which system prompts are tried; by default as long as the fine-tune took.
        config: of the fine-tunes; all approaches answer in its number format in 16-bit.
        curve: shares of the training rows that a fine-tune is measured on as well; () for none.
        shots: solved examples in a prompt.
        passages: of the documents in a prompt.
        embedder: for passages and nearest examples, as in `Index.build`; None searches by words alone.
        max_length: most tokens of a prompt and its answer.
        max_new_tokens: most tokens of an answer; by default twice the longest that is wanted, at least 48 and at most
            half of `max_length`.
        batch_size: prompts answered at once.
        timed: test rows that are asked one at a time, to measure the latency; 0 for none.
        terms: limits, prices and the difference that does not matter.
        groups: a column by which scores are shown apart as well.
        seed: of the fixed examples, the made prompts and the order of rows in the curve.
        progress: show a bar with the time left.

    Raises:
        ConfigError: an approach that there is not, or a number out of its range.
        DataError: no test rows, test rows that stand in train or val or with their answers in the documents, prompts
            that do not fit, documents that cannot be used, or a format that no reference keeps. All of it is found
            before anything is trained or answered.
        StorageError: the folder holds what ftkit did not write.
    """
    numbers = {"shots": shots, "passages": passages, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    _refuse_settings(approaches, curve, {**numbers, "search_minutes": search_minutes}, splits.test, groups)
    run.refuse_foreign()
    scoring = {"metrics": (metric,), "normalise": normalise, "labels": labels}
    evaluation.score_answers([None] * len(splits.test), splits.test, **scoring)  # type: ignore[arg-type]
    notes = _refuse_seen(splits)
    left_out = _impossible(approaches, splits, documents, answer_format)
    ways = {name: WAYS[name] for name in approaches if name not in left_out}
    index = questions = constraint = None
    if any(way.passages for way in ways.values()):
        index = documents if isinstance(documents, Index) else Index.build(documents, embedder=embedder)
        notes += _refuse_pasted(splits.test, index)
    if any(way.shots == "nearest" for way in ways.values()):
        asked = questions_of(splits.train)
        questions = Index.build(asked, embedder=embedder, chunk_words=100_000, overlap_words=0)
    config = config or TrainConfig.for_hardware(detect())
    base = base or models.default_model(detect())
    model, tokenizer = models.load(base, in_16bit(config))
    if any(way.constrained for way in ways.values()):
        constraint = Constraint.of(answer_format or {}, tokenizer, model)
        notes += _refuse_unkept(constraint, splits)
    limit = min(max_length, models.context_tokens(model) or max_length)
    shared = Task(
        base=base,
        splits=splits,
        config=config,
        scoring={**scoring, "tokenizer": tokenizer, "number_format": evaluation.number_format(model)},
        tokenizer=tokenizer,
        limit=limit,
        shots=shots,
        passages=passages,
        max_new_tokens=max_new_tokens or min(_room(splits, tokenizer), limit // 2),
        batch_size=batch_size,
        folds=_refuses_system(tokenizer),
        timed=timed,
        seed=seed,
        index=index,
        questions=questions,
    )
    jobs = _jobs(shared, ways, curve)
    key = hashlib.sha256(f"{_FORMAT} {models.base_digest(model)} {tokenizer.chat_template}".encode()).hexdigest()
    candidates = list(system_prompts) or made_prompts(task, splits.train, seed)
    folder = run / "decision"
    bench = Bench(shared, folder, key, constraint, candidates, search_minutes, {"model": model}, left_out)
    files.remove_leftovers(folder)
    for job in jobs:
        files.refuse_foreign(bench.folder / folder_name(job.name))
    del model
    found = measured(bench, jobs, progress)
    decision = Decision(
        approaches=tuple(found[name] for name in approaches if name in found),
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", "own"),
        left_out=left_out,
        curve=_curve(jobs, found),
        notes=tuple(notes),
        terms=terms or Terms(),
        groups=tuple(str(row.get(groups)) for row in splits.test) if groups else (),
    )
    decision.save(run / f"decision/{re.sub(r'[^A-Za-z0-9]+', '_', decision.metric).strip('_')}.json")
    run.finish("decide", chosen=decision.chosen.name if decision.chosen else None, prompts=decision.prompts)
    return decision


def _room(splits: Splits, tokenizer: Any) -> int:
    """Tokens that an answer may take: the wanted ones fit twice, and who says it in a short sentence is not cut."""
    wanted = [answer_turn(row)["content"] or "" for row in itertools.chain(splits.train, splits.test)]
    return max(48, 2 * max(map(len, tokenizer(wanted, add_special_tokens=False)["input_ids"])))


def _jobs(task: Task, ways: Mapping[str, Way], curve: Sequence[float]) -> list[Job]:
    """What is to be measured, with every prompt made already, so that none turns out not to fit later."""
    jobs, parts = [], task.splits
    for name, way in ways.items():
        if way.searched:
            jobs.append(Job(name, way, [], 0.0))
            continue
        task.asked(way, parts.test[0])  # the first search also counts words
        began = time.perf_counter()
        asked = [task.asked(way, row) for row in parts.test]
        job = Job(name, way, asked, (time.perf_counter() - began) / len(asked) if way.passages or way.shots else 0.0)
        if way.tuned:
            train, val = task.of_training(way, parts.train), task.of_training(way, parts.val)
            longest = max(task.config.max_length, task.limit if way.passages else 0)
            job = replace(job, train=train, val=val, config=task.config.replace(max_length=longest))
        jobs.append(job)
        if way == WAYS["fine_tune"]:
            mixed = parts.train.shuffle(seed=task.seed)
            sizes = sorted({max(1, round(share * len(mixed))) for share in curve if share < 1})
            jobs += [replace(job, name=f"{name} on {n} rows", train=mixed.select(range(n))) for n in sizes]
    every_prompt = itertools.chain.from_iterable(job.asked for job in jobs)
    long = [task.tokens(asked) for asked in every_prompt]
    if over := sum(tokens + task.max_new_tokens > task.limit for tokens in long):
        raise DataError(
            f"{over} prompts leave no room for an answer of {task.max_new_tokens} tokens in {task.limit} (the longest "
            f"takes {max(long)}). Raise max_length where the model reads more, lower max_new_tokens, or leave out rows "
            "so long."
        )
    return jobs


def _curve(jobs: Sequence[Job], found: Mapping[str, Approach]) -> tuple[tuple[int, evaluation.EvalReport], ...]:
    """Reports by the number of training rows, the whole part last."""
    tuned = [job for job in jobs if job.name.partition(" on ")[0] == "fine_tune" and job.name in found]
    points = [(len(job.train), found[job.name].report) for job in tuned]
    return tuple(sorted(points, key=lambda point: point[0])) if len(points) > 1 else ()


def _refuse_settings(
    approaches: Sequence[str],
    curve: Sequence[float],
    numbers: Mapping[str, float | None],
    test: Any,
    groups: str | None,
) -> None:
    """Stop for what cannot be meant, all of it at once."""
    faults = [f"{name!r} is no approach; there are: {', '.join(WAYS)}." for name in approaches if name not in WAYS]
    if not approaches or len(set(approaches)) < len(approaches):
        faults.append(f"approaches={list(approaches)} is empty or names one twice.")
    faults += [
        f"curve has {share}, and a share of the rows lies above 0 and up to 1." for share in curve if not 0 < share <= 1
    ]
    least = {"search_minutes": 0.001}
    faults += [
        f"{name}={value} is less than {least.get(name, 1)}."
        for name, value in numbers.items()
        if value is not None and not value >= least.get(name, 1)
    ]
    if groups and groups not in test.column_names:
        faults.append(f"groups={groups!r} is no column; there are: {', '.join(test.column_names)}.")
    if faults:
        raise ConfigError("\n".join(faults))


def _refuse_seen(splits: Splits) -> list[str]:
    """Stop for test rows that train or val holds; a sentence on those that are nearly the same."""
    exact, near = [], []
    for name, part in (("train", splits.train), ("val", splits.val)):
        found = data.leakage(part, splits.test) if len(part) else None
        exact += [f"test row {o.test} = {name} row {o.train}" for o in found.exact] if found else []
        near += [f"{o.test} (like {name} row {o.train})" for o in found.near] if found else []
    if exact:
        more = f", and {len(exact) - 10} more" if len(exact) > 10 else ""
        raise DataError(
            f"Test rows stand in train or val, so no score on them says anything: {', '.join(exact[:10])}{more}. "
            "Split with data.split, which keeps twins together, or take them out of one of the two."
        )
    told = ", ".join(near[:5])
    return [f"Nearly the same as rows that were learned from are {len(near)} test rows: {told}."] if near else []


def _refuse_pasted(test: Any, index: Index) -> list[str]:
    """Stop for test rows that a document holds with their answers; a sentence on questions that stand in one."""
    texts = {document.id: data.normalise(document.text) for document in index.documents}
    void: list[str] = []
    said: list[str] = []
    for number, row in enumerate(test, 1):
        question = data.normalise(data.prompt(row)["messages"][-1]["content"])
        for name, text in texts.items() if len(question.split()) > 3 else ():
            if question in text:
                answer = data.normalise(answer_turn(row)["content"] or "")
                (void if answer and answer in text.partition(question)[2] else said).append(f"{number} ({name})")
                break
    if void:
        raise DataError(
            f"{len(void)} test rows stand word for word in the documents, with their answers, so that search finds the "
            f"test itself: rows {', '.join(void[:10])}. Take them out of the documents or the test, or leave out the "
            "approaches that search documents."
        )
    told = ", ".join(said[:5])
    return [f"The questions of {len(said)} test rows stand word for word in documents: {told}."] if said else []


def _refuse_unkept(constraint: Constraint, splits: Splits) -> list[str]:
    """Stop for a format that no reference keeps; a sentence on test rows whose reference does not."""
    told = [answer_turn(row)["content"] or "" for row in itertools.chain(splits.test, splits.train)]
    kept = [constraint.allows(text) for text in told[: len(splits.test) + 100]]
    if not any(kept):
        raise DataError(
            f"No reference keeps answer_format, so a constrained answer could never be right; the first is "
            f"{told[0][:200]!r}. Mend the format, or leave it out."
        )
    missed = len(splits.test) - sum(kept[: len(splits.test)])
    return [f"answer_format does not allow the reference of {missed} test rows."] if missed else []


def _impossible(approaches: Sequence[str], splits: Splits, documents: Any, answer_format: Any) -> dict[str, str]:
    """Approaches that cannot be measured, with the reason."""
    reasons = {}
    for name in approaches:
        way = WAYS[name]
        if (way.tuned or way.shots) and len(splits.train) == 0:
            reasons[name] = "there are no training rows."
        elif (way.tuned or way.searched) and len(splits.val) == 0:
            reasons[name] = "there are no val rows to watch or choose it on."
        elif way.passages and documents is None:
            reasons[name] = "no documents were given."
        elif way.constrained and answer_format is None:
            reasons[name] = "no answer_format was given."
        elif way.constrained and find_spec("llguidance") is None:
            reasons[name] = "llguidance is not installed: pip install llguidance."
    return reasons


def _refuses_system(tokenizer: Any) -> bool:
    try:
        chat.render([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], tokenizer)
    except DataError:
        return True
    return False
