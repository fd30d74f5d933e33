"""Trainings that are spoilt on purpose, for a lesson on curves; and one that is killed half-way.

```python
broken = break_four("smollm2-135m-instruct", splits, config, "runs")
training.plot_curves(broken.lettered)
```
"""

import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import data, models, training
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.runs import Run
from ftkit.training import History

_LEAST = 40  # rows of a short training, where there are so many


@dataclass(frozen=True)
class BrokenRuns:
    """Four trainings by what spoilt them; `order` is the names in the order of the letters A to D."""

    histories: Mapping[str, History]
    configs: Mapping[str, TrainConfig]
    runs: Mapping[str, Run]
    order: tuple[str, ...]

    @property
    def lettered(self) -> dict[str, History]:
        """Curves by letter."""
        return {letter: self.histories[name] for letter, name in zip("ABCD", self.order, strict=True)}

    @property
    def names(self) -> dict[str, str]:
        """What spoilt the run of each letter."""
        return dict(zip("ABCD", self.order, strict=True))


def shortest(splits: Splits) -> Splits:
    """The shortest quarter of the training rows, with val and test rows of like length where there are any."""
    sizes = sorted(sum(len(turn["content"] or "") for turn in row["messages"]) for row in splits.train)
    limit = sizes[min(len(sizes) - 1, max(len(sizes) // 4, _LEAST))] + 1
    kept = splits.shorter_than(limit)
    val, test = (getattr(kept, part) or getattr(splits, part) for part in ("val", "test"))
    return Splits(kept.train, val, test, kept.searched, kept.repeats)


def swapped(splits: Splits, seed: int) -> Splits:
    """The training answers, each under the question of another row: the same words in the wrong place."""
    chats = [row["messages"] for row in splits.train]
    answers = random.Random(seed).sample([chat[-1] for chat in chats], len(chats))
    mixed = [{"messages": [*chat[:-1], answer]} for chat, answer in zip(chats, answers, strict=True)]
    return Splits(data.load_examples(mixed), splits.val, splits.test)


def eight_rows(splits: Splits | None, seed: int) -> Splits:
    """Eight short rows to be read again and again; of the bundled general questions where `splits` is None."""
    parts = splits or data.split(data.load_examples("general"), seed=seed)
    order = sorted(range(len(parts.train)), key=lambda i: len(str(parts.train[i]["messages"])))
    return Splits(parts.train.select(order[:8]), parts.val, parts.test)


def break_four(
    base_model: str, splits: Splits, config: TrainConfig, root: str | Path, *, own: bool = False
) -> BrokenRuns:
    """Train four runs that go wrong, on short rows and with a small adapter, so that each takes seconds.

    One has far too large a step, one far too small a step, one reads the same eight rows again and again until early
    stopping ends it, and one has every answer under another's question.

    Args:
        base_model: as `models.load` takes it.
        splits: the rows.
        config: settings, of which length and speed are changed.
        root: where the four run folders go, `train-too-large-a-step` and so on.
        own: take the eight rows from `splits`, and not from the bundled general questions.
    """
    quick = config.replace(
        load_in_4bit=False,
        target_modules=("q_proj", "v_proj"),
        gradient_accumulation_steps=1,
        eval_steps=0,
        save_steps=0,
        learning_rate=5e-3,
        warmup_steps=2,
        lora_r=16,
        lora_alpha=32,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=2,
    )
    short, steps = shortest(splits), config.max_steps
    settings = {
        "too large a step": quick.replace(learning_rate=1e-2, lora_alpha=512, warmup_steps=0),
        "too small a step": quick.replace(learning_rate=1e-6),
        "eight rows": quick.replace(max_steps=steps + 8, eval_steps=4, early_stopping_patience=2),
        "wrong answers": quick.replace(max_steps=steps + 4),
    }
    rows = dict.fromkeys(settings, short)
    rows["eight rows"] = eight_rows(splits if own else None, config.seed)
    rows["wrong answers"] = swapped(short, config.seed)
    histories, runs = {}, {}
    for name, setting in settings.items():
        model, tokenizer = models.load(base_model, setting)
        run = runs[name] = Run.create("train-" + name.replace(" ", "-"), root)
        done = training.train(model, tokenizer, rows[name], setting, run, resume=False, watch=no_figure)
        histories[name] = done
        facts = run.facts["train"]
        kept = f", the adapter of update {facts['best_step']} is kept" if setting.early_stopping_patience else ""
        print(f"{name}: {done.steps} updates, {done.seconds:.0f} s{kept}")
    order = random.Random(config.seed).sample(list(settings), 4)
    return BrokenRuns(histories, settings, runs, tuple(order))


def no_figure(points: Any, total: int) -> None:
    """A `watch` for `training.train` that draws nothing: runs that are compared later need no picture each."""


def kill_half_way(
    base_model: str,
    config: TrainConfig,
    root: str | Path,
    *,
    source: str,
    columns: Mapping[str, str] | None = None,
    checkpoints: int = 2,
) -> Run:
    """Train by command in a process of its own, kill it once so many checkpoints are there, and give its run folder.

    Begins anew at every call. Prints the command and how it ended: by signal 9, which no program can catch.

    Args:
        base_model: as `models.load` takes it.
        config: the settings, which are written to a file beside the run.
        root: where the run folder `train-killed` goes.
        source: rows as `data.load_examples` takes them.
        columns: its `mapping`.
        checkpoints: to wait for.
    """
    run = Run.create("train-killed", root)
    settings = config.save(run.path.with_suffix(".yaml"))
    command = ["-m", "ftkit", "train", str(settings), "--data", source, "--model", base_model, "--fresh"]
    command += ["--run", run.path.name, "--root", str(run.path.parent)]
    if columns:
        command += ["--mapping", ",".join(f"{ours}={theirs}" for ours, theirs in columns.items())]
    print("python -m ftkit train", settings.name, "--data", source, "…")
    for place in training.all_in(run / "checkpoints"):
        training.remove(place)
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(training.all_in(run / "checkpoints")) < checkpoints:
        time.sleep(0.1)
    process.kill()
    print(f"ended by signal {-process.wait()}; finished: {run.finished('train')}")
    return run


def adapter_difference(one: Run, other: Run) -> float:
    """The largest difference between two weights in the same place of two runs' adapters."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(run.require("adapter/adapter_model.safetensors")) for run in (one, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
