"""How long the run is against what shall happen in it: warm-up, checkpoints, validation, passes over the data."""

import math
from collections.abc import Iterator

from ftkit.config import TrainConfig
from ftkit.findings import Finding

CHECKS = {
    "warmup-too-long": "the learning rate is reached, and held for most of the run",
    "save-never": "a checkpoint is written before the end",
    "eval-never": "the validation loss is measured before the end",
    "early-stopping-idle": "early stopping can come into play",
    "few-updates": "there are at least ten updates",
    "fewer-rows-than-batch": "the data fill a batch",
    "too-many-epochs": "a small set is not read so often that it is learnt by heart",
}
_FEW = 10
_SMALL_SET = 1_000
_OVERFITTING_PASSES = 3


def updates_in(config: TrainConfig, rows: int | None) -> int | None:
    """Weight updates of the whole run; None where the epochs decide and the rows are not known."""
    if config.max_steps > 0:
        return config.max_steps
    return None if not rows else max(1, math.ceil(config.num_train_epochs * _updates_per_pass(config, rows)))


def passes_over(config: TrainConfig, rows: int) -> float:
    """How often the run reads each row, on average."""
    return (updates_in(config, rows) or 0) / _updates_per_pass(config, rows)


def check(config: TrainConfig, rows: int | None = None) -> Iterator[Finding]:
    """What cannot happen in a run of this length; without `rows` only what `max_steps` decides."""
    if (updates := updates_in(config, rows)) is not None:
        yield from _check_warmup(config, updates)
        yield from _check_marks(config, updates)
    if rows:
        yield from _check_rows(config, rows)


def _updates_per_pass(config: TrainConfig, rows: int) -> int:
    """The last, short batch of a pass counts as an update of its own, as in transformers' Trainer."""
    return math.ceil(math.ceil(rows / config.per_device_train_batch_size) / config.gradient_accumulation_steps)


def _check_warmup(config: TrainConfig, updates: int) -> Iterator[Finding]:
    if config.lr_scheduler_type == "constant" or config.warmup_steps <= updates / 2:
        return
    fix = f"Set warmup_steps={updates // 20}: about 5 % of the run."
    seen = f"warmup_steps={config.warmup_steps}, {updates} updates in all"
    if config.warmup_steps >= updates:
        yield Finding(
            "warmup-too-long",
            "warning",
            f"The warm-up outlasts the run: learning_rate={config.learning_rate:g} is never reached.",
            seen,
            fix,
            "warmup_steps",
        )
    else:
        yield Finding("warmup-too-long", "note", "More than half of the run is warm-up.", seen, fix, "warmup_steps")


def _check_marks(config: TrainConfig, updates: int) -> Iterator[Finding]:
    if config.save_steps > updates:
        yield Finding(
            "save-never",
            "note",
            "No checkpoint is written before the end: an interruption loses the run.",
            f"save_steps={config.save_steps}, {updates} updates in all",
            f"Set save_steps={max(1, updates // 3)}.",
            "save_steps",
        )
    if config.eval_steps > updates:
        yield Finding(
            "eval-never",
            "note",
            "The validation loss is measured only at the end, so overfitting would show too late.",
            f"eval_steps={config.eval_steps}, {updates} updates in all",
            f"Set eval_steps={max(1, updates // 4)}.",
            "eval_steps",
        )
    measured = updates // config.eval_steps if config.eval_steps else 0
    if config.early_stopping_patience >= measured > 0:
        yield Finding(
            "early-stopping-idle",
            "warning",
            "Early stopping can never come into play: the run is over before.",
            f"early_stopping_patience={config.early_stopping_patience}, {measured} validation losses in {updates} updates",
            f"Set eval_steps={max(1, updates // (3 * (config.early_stopping_patience + 1)))} or a smaller early_stopping_patience.",
            "early_stopping_patience",
        )
    if updates < _FEW:
        fp16 = config.dtype == "fp16"
        yield Finding(
            "few-updates",
            "warning" if fp16 else "note",
            f"{updates} updates are enough to see that it runs, not to learn from."
            + (" The first ones in fp16 are often skipped, while the loss scale is being found." if fp16 else ""),
            f"{updates} updates",
            f"Give at least {_FEW}: raise max_steps or num_train_epochs.",
            "max_steps" if config.max_steps > 0 else "num_train_epochs",
        )


def _check_rows(config: TrainConfig, rows: int) -> Iterator[Finding]:
    if rows < config.effective_batch_size:
        yield Finding(
            "fewer-rows-than-batch",
            "warning",
            "The whole training set is smaller than one batch: each update sees all of it.",
            f"{rows} rows, {config.effective_batch_size} examples an update",
            "Add rows, or lower gradient_accumulation_steps.",
            "gradient_accumulation_steps",
        )
    passes = passes_over(config, rows)
    if rows < _SMALL_SET and passes > _OVERFITTING_PASSES:
        field = "max_steps" if config.max_steps > 0 else "num_train_epochs"
        yield Finding(
            "too-many-epochs",
            "warning",
            f"Each row is read {passes:.1f} times: a set this small is learnt by heart.",
            f"{rows} rows, {updates_in(config, rows)} updates of {config.effective_batch_size} examples",
            f"Stay at {_OVERFITTING_PASSES} passes or below, or watch the validation loss turn up.",
            field,
        )
