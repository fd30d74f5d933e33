"""Settings against the machine, before any model or data: number formats, packages, unusual values.

Each check yields findings; `CHECKS` names them. Knows the knobs only through `TrainConfig`'s own fields.
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec

from ftkit.config import TrainConfig
from ftkit.hardware import Hardware
from ftkit.preflight.report import Finding

SETTINGS_CHECKS = {
    "unusual-setting": "every setting lies in its usual range",
    "effective-batch": "8 to 32 examples stand behind each update",
    "alpha-ratio": "lora_alpha is about once or twice lora_r",
    "bf16-unsupported": "the device computes in bf16, where the settings want it",
    "fp16-on-cpu": "fp16 is not asked of a CPU",
    "fp32-on-gpu": "a GPU computes in 16-bit",
    "optimizer-replaced": "the optimiser exists on this device",
    "packing-leaks": "packed examples cannot see each other",
    "package-missing": "the packages that the settings need are installed",
}

_ALPHA = (0.5, 4.0)

_BATCH = (8, 32)

# What lies below and above the usual range; a knob that is not named here is described by its help alone.
_CONSEQUENCES = {
    "lora_r": ("the adapter has little room for what is new", "memory grows, the score rarely does"),
    "lora_alpha": ("the adapter's part may stay too weak to matter", "the adapter's part may drown the base model's"),
    "lora_dropout": ("", "training slows, and Unsloth loses its fast path"),
    "learning_rate": ("the adapter learns little in a short run", "the loss may jump or diverge"),
    "warmup_steps": ("the first updates may throw the loss up", "much of the run is spent below the learning rate"),
    "num_train_epochs": ("part of the data is never read", "a small set is learnt by heart"),
    "weight_decay": ("", "the adapter is pulled towards doing nothing"),
    "max_grad_norm": ("every update is cut short", "one bad batch can throw the weights far off"),
    "max_length": ("long rows lose their ends", "memory grows with the length"),
}


def check_values(config: TrainConfig, *, updates: int | None = None, longest: int | None = None) -> Iterator[Finding]:
    """Values outside the usual range of their knob.

    Args:
        config: the settings.
        updates: of the whole run, where known: a short run wants a short warm-up.
        longest: tokens of the longest row, where known: `max_length` may be small if nothing is cut.
    """
    for spec in fields(config):
        usual, value = spec.metadata["typical"], getattr(config, spec.name)
        if usual is None or usual[0] <= value <= usual[1] or _is_fine(spec.name, config, updates, longest):
            continue
        below = value < usual[0]
        effect = _CONSEQUENCES.get(spec.name, ("", ""))[0 if below else 1]
        yield Finding(
            "unusual-setting",
            "warning",
            f"{spec.name}={value:g} is {'below' if below else 'above'} the usual {usual[0]:g} to {usual[1]:g}"
            f"{': ' + effect if effect else ''}.",
            f"{spec.name}: {spec.metadata['help']}",
            f"Try {spec.name}={usual[0 if below else 1]:g}, or keep it if a short run shows that it works.",
            spec.name,
        )
    yield from _check_batch(config)
    yield from _check_alpha(config)


def _is_fine(name: str, config: TrainConfig, updates: int | None, longest: int | None) -> bool:
    """Whether an unusual value is right in this run."""
    if name == "warmup_steps":
        short = updates is not None and 0.03 <= config.warmup_steps / updates <= 0.5
        return short or config.lr_scheduler_type == "constant"
    if name == "num_train_epochs":
        return config.max_steps > 0
    return name == "max_length" and longest is not None and longest <= config.max_length < 512


def _check_batch(config: TrainConfig) -> Iterator[Finding]:
    size = config.effective_batch_size
    if _BATCH[0] <= size <= _BATCH[1]:
        return
    few = size < _BATCH[0]
    yield Finding(
        "effective-batch",
        "warning",
        f"{size} examples stand behind each update, {'fewer' if few else 'more'} than the usual {_BATCH[0]} to {_BATCH[1]}: "
        + ("updates are noisy." if few else "there are few updates for the data."),
        f"{config.per_device_train_batch_size} examples in memory at once × {config.gradient_accumulation_steps} micro-batches",
        f"Set gradient_accumulation_steps={max(1, (_BATCH[0] if few else _BATCH[1]) // config.per_device_train_batch_size)}: it costs no memory."
        if few or config.gradient_accumulation_steps > 1
        else f"Set per_device_train_batch_size={_BATCH[1]} or lower.",
        "gradient_accumulation_steps",
    )


def _check_alpha(config: TrainConfig) -> Iterator[Finding]:
    ratio = config.lora_alpha / config.lora_r
    if config.use_rslora or _ALPHA[0] <= ratio <= _ALPHA[1]:
        return
    weak = ratio < _ALPHA[0]
    yield Finding(
        "alpha-ratio",
        "warning",
        f"lora_alpha / lora_r is {ratio:g}, so the adapter's part is scaled {'down' if weak else 'up'}: it acts like a "
        f"{'lower' if weak else 'higher'} learning rate.",
        f"lora_alpha={config.lora_alpha}, lora_r={config.lora_r}; usual is once or twice r",
        f"Set lora_alpha={min(512, 2 * config.lora_r)}.",
        "lora_alpha",
    )


def check_device(config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    """Number formats, optimiser and packing on this device; packages that the settings need."""
    yield from _check_dtype(config, hardware)
    if hardware.device == "cpu" and "8bit" in config.optim:
        yield Finding(
            "optimizer-replaced",
            "note",
            f"{config.optim} does not exist on a CPU; adamw_torch takes its place.",
            str(hardware),
            "Set optim='adamw_torch', so that the record says what ran.",
            "optim",
        )
    if config.packing:
        yield Finding(
            "packing-leaks",
            "error",
            "Packed examples would see each other: no backend here keeps them apart.",
            "packing=True",
            "Set packing=False; group_by_length=True saves most of the padding.",
            "packing",
        )
    yield from _check_packages(config)


def _check_dtype(config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    on_gpu = hardware.device != "cpu"
    if config.dtype == "bf16" and not hardware.bf16:
        capability = hardware.compute_capability
        seen = (
            f"compute capability {capability[0]}.{capability[1]}, bf16 wants 8.0"
            if capability
            else "the CPU has no bf16 instructions"
        )
        yield Finding(
            "bf16-unsupported",
            "error" if on_gpu else "warning",
            f"{hardware.name} has no bf16: it would be emulated, slowly, or fail in a kernel.",
            seen,
            f"Set dtype='{'fp16' if on_gpu else 'fp32'}', or take TrainConfig.for_hardware(hardware.detect()).",
            "dtype",
        )
    if config.dtype == "fp16" and not on_gpu:
        best = "bf16" if hardware.bf16 else "fp32"
        yield Finding(
            "fp16-on-cpu",
            "error",
            "fp16 training needs a GPU: its loss scaling does not exist on a CPU.",
            str(hardware),
            f"Set dtype='{best}'.",
            "dtype",
        )
    if config.dtype == "fp32" and on_gpu:
        best = "bf16" if hardware.bf16 else "fp16"
        yield Finding(
            "fp32-on-gpu",
            "warning",
            "fp32 takes twice the memory of 16-bit and is several times slower on a GPU.",
            str(hardware),
            f"Set dtype='{best}'.",
            "dtype",
        )


def _check_packages(config: TrainConfig) -> Iterator[Finding]:
    wanted = {
        "bitsandbytes": ("load_in_4bit" if config.load_in_4bit else "", "load_in_4bit=False"),
        "unsloth": ("backend" if config.backend == "unsloth" else "", "backend='auto'"),
        config.report_to: ("report_to" if config.report_to != "none" else "", "report_to='none'"),
    }
    for package, (setting, way_out) in wanted.items():
        if setting and find_spec(package) is None:
            yield Finding(
                "package-missing",
                "error",
                f"{setting}={getattr(config, setting)} needs the package {package}, which is not installed.",
                f"no package {package}",
                f"Run: pip install {package}, or set {way_out}.",
                setting,
            )


SCHEDULE_CHECKS = {
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


def check_schedule(config: TrainConfig, rows: int | None = None) -> Iterator[Finding]:
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
