"""One training run: answer tokens only, through TRL's SFTTrainer, with a record that survives a kill.

Adds to TRL what a learner and a practitioner miss: a mask that comes from the tokenizer, a live curve, and a run folder.
"""

import json
import random
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit import data, models, plots, storage, template
from ftkit.config import TrainConfig
from ftkit.data import Splits
from ftkit.errors import ConfigError, DataError, FtkitWarning, StorageError
from ftkit.hardware import detect, peak_memory_gib, process_memory_gib, release_memory
from ftkit.history import History, Point, as_line, read_points, write_points
from ftkit.runs import Run

_MARK = "ftkit.json"  # written into a checkpoint after everything else: without it a checkpoint does not count


def train(model: Any, tokenizer: Any, splits: Splits, config: TrainConfig, run: Run, resume: bool = True) -> History:
    """Train `model` on the answers in `splits.train` and leave adapter, curve, config and data in `run`.

    A model without an adapter gets one (`models.add_lora`). While it runs, `history.csv` grows and a figure is drawn;
    `run.json` names the step "train" only when all is written.

    Args:
        model: from `models.load`.
        tokenizer: its tokenizer.
        splits: from `data.split`; `splits.val` is measured every `config.eval_steps` updates and at the end.
        config: the settings.
        run: where everything goes.
        resume: go on from the newest complete checkpoint of an interrupted run with the same model, settings and data;
            False starts afresh and replaces what an earlier training left.

    Raises:
        DataError: no row has a trained token.
        ConfigError: the run is finished already, or was interrupted with other settings or data (names them).
        StorageError: the disk is full or the folder cannot be written.
    """
    if resume and run.finished("train"):
        raise ConfigError(
            f"{run.path} holds a finished training. Choose another run name, or pass resume=False to replace it."
        )
    if config.packing:
        raise ConfigError(
            "packing=True is not supported yet: packed examples would see each other. Use group_by_length=True."
        )
    rows = {name: _tokenized(name, part, tokenizer, config) for name, part in _parts(splits, config).items()}
    model = models.add_lora(model, config)
    lengths = [len(ids) for ids in rows["train"]["input_ids"]]
    models.suit_attention(model, max(lengths))
    if config.group_by_length:
        rows["train"] = rows["train"].select(length_batches(lengths, config.per_device_train_batch_size, config.seed))
    facts = {
        "data_digest": data.digest(splits.train, splits.val), "config_digest": config.digest(),
        "base_model": _base_name(model), "backend": models.backend_of(model),
    }  # fmt: skip
    checkpoint = _checkpoint_to_resume(run, config, facts) if resume else None
    recorder = _Recorder(run, checkpoint, facts)
    with storage.explained(run.path):
        trainer = _trainer(model, tokenizer, rows, config, run, recorder)
        if checkpoint is None:
            _start_afresh(run, splits, config)
        try:
            _run(trainer, checkpoint, run)
        finally:
            recorder.drawing.close()
    history = History.of(read_points(run / "history.csv"), peak_memory_gib())
    plots.save(plots.loss(history, ax=plots.blank_axes()), run / "figures/loss.png")
    run.finish("train", **facts, device=str(detect()),
               seed=config.seed, steps=history.steps, seconds=round(history.seconds, 1), tokens=history.tokens,
               tokens_per_s=round(history.tokens_per_s, 1), peak_memory_gib=round(history.peak_memory_gib, 3),
               trainable_parameters=models.parameters(model)[0])  # fmt: skip
    return history


def _parts(splits: Splits, config: TrainConfig) -> dict[str, Any]:
    val = splits.val.shuffle(seed=config.seed).select(range(min(len(splits.val), config.max_eval_examples)))
    return {"train": splits.train, "val": val}


def _tokenized(name: str, examples: Any, tokenizer: Any, config: TrainConfig) -> Any:
    """Ids and labels of each row; rows in which nothing is trained are left out with a warning that numbers them."""
    from datasets import Dataset

    whole = [
        template.tokenize(row, tokenizer) for row in examples
    ]  # whole rows: a `tools` column belongs to the prompt
    if not whole:
        raise DataError(f"The {name} part has no rows.")
    rows = [{column: values[: config.max_length] for column, values in row.items()} for row in whole]
    empty = [number for number, row in enumerate(rows, 1) if all(label == template.IGNORED for label in row["labels"])]
    if empty:
        listed = ", ".join(map(str, empty[:10])) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
        reason = f"have no trained token: the answer lies beyond max_length={config.max_length}"
        if len(empty) == len(rows):
            raise DataError(f"All {len(rows)} {name} rows {reason}. Raise max_length.")
        warnings.warn(
            f"{name} rows {listed} {reason}; they are left out. Raise max_length to keep them.",
            FtkitWarning,
            stacklevel=3,
        )
    _warn_of_cuts(name, whole, config.max_length)
    dropped = set(empty)
    return Dataset.from_list([row for number, row in enumerate(rows, 1) if number not in dropped])


def _warn_of_cuts(name: str, rows: list[dict[str, list[int]]], limit: int) -> None:
    """Name the rows whose answer loses tokens at `limit`: they also lose the stop token."""
    lost = {
        n: sum(label != template.IGNORED for label in row["labels"][limit:])
        for n, row in enumerate(rows, 1)
        if any(label != template.IGNORED for label in row["labels"][:limit])
    }
    if cut := [n for n, tokens in lost.items() if tokens]:
        listed = ", ".join(map(str, cut[:10])) + (f" and {len(cut) - 10} more" if len(cut) > 10 else "")
        message = f"{name} rows {listed} are longer than max_length={limit}: their answers lose {sum(lost.values())} tokens, the stop token too."
        warnings.warn(message, FtkitWarning, stacklevel=4)


def length_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """An order of rows in which each `batch_size` neighbours are of like length, and the batches come shuffled.

    Transformers' own grouping puts the longest rows of 50 batches first: a run of 40 steps would never see a short one.
    """
    draw = random.Random(seed)
    order = list(range(len(lengths)))
    draw.shuffle(order)  # ties in length, and which rows a short run sees, are up to the seed
    order.sort(key=lambda i: lengths[i])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    draw.shuffle(batches)
    batches.sort(key=len, reverse=True)  # the one that is not full comes last, or all others would be cut differently
    return [i for batch in batches for i in batch]


def _trainer(
    model: Any, tokenizer: Any, rows: dict[str, Any], config: TrainConfig, run: Run, recorder: "_Recorder"
) -> Any:
    from transformers import DataCollatorForSeq2Seq, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    on_cpu = detect().device == "cpu"
    arguments = SFTConfig(
        output_dir=str(run / "checkpoints"), seed=config.seed, data_seed=config.seed,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.num_train_epochs, max_steps=config.max_steps,
        learning_rate=config.learning_rate, lr_scheduler_type=config.lr_scheduler_type, warmup_steps=config.warmup_steps,
        optim="adamw_torch" if on_cpu and "8bit" in config.optim else config.optim,
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bf16", fp16=config.dtype == "fp16", use_cpu=on_cpu, dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=config.gradient_checkpointing, max_length=config.max_length, packing=config.packing,
        dataset_kwargs={"skip_prepare_dataset": True}, prediction_loss_only=True,
        eval_strategy="steps" if config.eval_steps else "no", eval_steps=config.eval_steps or None,
        save_strategy="steps" if config.save_steps else "no", save_steps=config.save_steps or 500,
        save_total_limit=config.save_total_limit, logging_steps=config.logging_steps, logging_first_step=True,
        report_to=config.report_to, disable_tqdm=True,
        train_sampling_strategy="sequential" if config.group_by_length else "random",
    )  # fmt: skip
    # Labels are padded by position, never by token id: a pad token that equals the stop token does no harm.
    # Few distinct widths on a CPU: each new one leaves compiled kernels in memory.
    collator = DataCollatorForSeq2Seq(
        tokenizer, label_pad_token_id=template.IGNORED, pad_to_multiple_of=16 if on_cpu else None
    )
    trainer = SFTTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=rows["train"],
                         eval_dataset=rows["val"], data_collator=collator, callbacks=[recorder.callback()])  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(trainer: Any, checkpoint: Path | None, run: Run) -> None:
    from safetensors import SafetensorError

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        models.save_adapter(trainer.model, trainer.processing_class, run / "adapter")  # before anything else can fail
        evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
        if trainer.state.global_step not in evaluated:
            trainer.evaluate()
    except (SafetensorError, RuntimeError) as error:
        # torch and safetensors raise their own classes when a checkpoint does not fit on the disk
        if shutil.disk_usage(run.path).free < 2**20 or any(sign in str(error) for sign in _WRITE_FAILED):
            raise StorageError(f"Cannot write {run.path}: the disk is full or refuses a file of this size. Free some space and call train "
                               "again: it resumes from the last complete checkpoint.") from error  # fmt: skip
        raise


def _start_afresh(run: Run, splits: Splits, config: TrainConfig) -> None:
    """Empty what an earlier training left, so that nothing of two runs is mixed, and note what this one starts from."""
    for step in ("train", "evaluate"):
        run.reopen(step)
    for name in ("checkpoints", "adapter", "eval", "figures"):
        shutil.rmtree(run / name, ignore_errors=True)
    write_points(run / "history.csv", [])
    config.save(run / "config.yaml")
    data.save(splits, run)


def _checkpoint_to_resume(run: Run, config: TrainConfig, facts: dict[str, str]) -> Path | None:
    complete = [p for p in (run / "checkpoints").glob("checkpoint-*") if (p / _MARK).exists()]
    if not complete:
        return None
    newest = max(complete, key=lambda p: int(p.name.rsplit("-", 1)[1]))
    then = json.loads((newest / _MARK).read_text(encoding="utf-8"))
    other = "Go on with the same, start another run, or pass resume=False to start this one afresh."
    if then["config_digest"] != facts["config_digest"]:
        before = TrainConfig.load(run / "config.yaml")
        changed = [n for n in config.__dataclass_fields__ if getattr(config, n) != getattr(before, n)]
        listed = ", ".join(f"{n} ({getattr(before, n)} then, {getattr(config, n)} now)" for n in changed)
        raise ConfigError(f"{newest} belongs to a run with other settings: {listed}. {other}")
    for fact in ("data_digest", "base_model", "backend"):
        if then[fact] != facts[fact]:
            what = "other data" if fact == "data_digest" else f"another {fact} ({then[fact]} then, {facts[fact]} now)"
            raise ConfigError(f"{newest} belongs to a run on {what}. {other}")
    return newest


_WRITE_FAILED = ("No space left", "File too large", "inline_container", "iostream error", "PytorchStreamWriter")


class _Recorder:
    """Writes `history.csv` as training goes, draws the curve, and marks checkpoints as complete."""

    def __init__(self, run: Run, checkpoint: Path | None, facts: dict[str, str]) -> None:
        self.path, self.facts, self.drawing = run / "history.csv", facts, plots.live_loss()
        self.points: list[Point] = []
        self.on_cpu = detect().device == "cpu"
        if checkpoint is not None:
            reached = int(checkpoint.name.rsplit("-", 1)[1])
            self.points = [p for p in read_points(self.path) if p.step <= reached]
            write_points(self.path, self.points)
        self.earlier_tokens = max((p.tokens or 0 for p in self.points), default=0)
        self.earlier_s = max((p.seconds or 0.0 for p in self.points), default=0.0)
        self.started = time.monotonic()

    def add(self, step: int, logs: dict[str, float], total: int) -> None:
        """Take in what the trainer logs: a training point, a validation point, or a closing summary (not kept)."""
        tokens = logs.get("num_tokens", logs.get("eval_num_tokens"))
        point = Point(step, logs.get("loss"), logs.get("eval_loss"), logs.get("learning_rate"), logs.get("grad_norm"),
                      None if tokens is None else self.earlier_tokens + int(tokens), self.earlier_s + time.monotonic() - self.started,
                      process_memory_gib() if self.on_cpu else peak_memory_gib())  # fmt: skip
        release_memory()
        if point.loss is None and point.val_loss is None:
            return
        self.points.append(point)
        with storage.explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(as_line(point))
        self.drawing.update(self.points, total)

    def callback(self) -> Any:
        """A `TrainerCallback` that calls back into this recorder."""
        from transformers import TrainerCallback

        recorder = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                recorder.started = time.monotonic()
                recorder.drawing.start(state.max_steps)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                recorder.add(state.global_step, logs or {}, state.max_steps)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                storage.write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARK, recorder.facts)

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                recorder.drawing.finish(recorder.points, state.max_steps)

        return Callback()


def _base_name(model: Any) -> str:
    from ftkit import bundled

    name = str(model.config._name_or_path)
    return models.BUNDLED if Path(name) == bundled.location() else name
