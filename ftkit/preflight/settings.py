"""Settings alone, before any model or data: unusual values, what the machine cannot do, and the length of the run.

Knows the knobs only through `TrainConfig`'s own fields.
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
    "warmup-ignored": "the schedule has the warm-up that the settings ask for",
    "warmup-too-long": "the learning rate is reached, and held for most of the run",
    "save-never": "a checkpoint is written before the end",
    "eval-never": "the validation loss is measured before the end",
    "early-stopping-idle": "early stopping can come into play",
    "few-updates": "there are at least ten updates",
    "fewer-rows-than-batch": "the data fill a batch",
    "too-many-epochs": "a small set is not read so often that it is learnt by heart",
}

_ALPHA = (0.5, 4.0)
_BATCH = (8, 32)
_FEW = 10
_SMALL_SET = 1_000
_OVERFITTING_PASSES = 3

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


def check_values(
    config: TrainConfig, hardware: Hardware, *, rows: int | None = None, longest: int | None = None
) -> Iterator[Finding]:
    """All findings about the settings; without `rows` the length of the run is known only where `max_steps` says it."""
    updates = updates_in(config, rows)
    yield from _check_usual(config, updates, longest)
    yield from _check_batch(config)
    yield from _check_alpha(config)
    yield from _check_dtype(config, hardware)
    yield from _check_features(config, hardware)
    yield from _check_packages(config)
    yield from _check_warmup(config, updates)
    if updates is not None:
        yield from _check_marks(config, updates)
        yield from _check_few(config, updates)
    if rows:
        yield from _check_rows(config, rows)


def updates_in(config: TrainConfig, rows: int | None) -> int | None:
    """Weight updates of the whole run; None where the epochs decide and the rows are not known."""
    if config.max_steps > 0:
        return config.max_steps
    if not rows:
        return None
    return max(1, math.ceil(config.num_train_epochs * _updates_per_pass(config, rows)))


def passes_over(config: TrainConfig, rows: int) -> float:
    """How often the run reads each row, on average."""
    return (updates_in(config, rows) or 0) / _updates_per_pass(config, rows)


def _updates_per_pass(config: TrainConfig, rows: int) -> int:
    """The last, short batch of a pass counts as an update of its own, as in transformers' Trainer."""
    return math.ceil(math.ceil(rows / config.per_device_train_batch_size) / config.gradient_accumulation_steps)


def _check_usual(config: TrainConfig, updates: int | None, longest: int | None) -> Iterator[Finding]:
    """Values outside the usual range of their knob, where nothing about this run makes them right."""
    for spec in fields(config):
        usual, value = spec.metadata["typical"], getattr(config, spec.name)
        if usual is None or usual[0] <= value <= usual[1] or _is_fine(spec.name, config, updates, longest):
            continue
        low, high = _CONSEQUENCES.get(spec.name, ("", ""))
        side, effect, better = "above", high, usual[1]
        if value < usual[0]:
            side, effect, better = "below", low, usual[0]
        yield Finding(
            id="unusual-setting",
            severity="warning",
            title=f"{spec.name}={value:g} is {side} the usual {usual[0]:g} to {usual[1]:g}"
            f"{': ' + effect if effect else ''}.",
            evidence=f"{spec.name}: {spec.metadata['help']}",
            fix=f"Try {spec.name}={better:g}, or keep it if a short run shows that it works.",
            field=spec.name,
        )


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
    at_once, summed = config.per_device_train_batch_size, config.gradient_accumulation_steps
    compared, price, wanted = "more", "there are few updates for the data", _BATCH[1]
    if size < _BATCH[0]:
        compared, price, wanted = "fewer", "updates are noisy", _BATCH[0]
    fix = f"Set gradient_accumulation_steps={max(1, wanted // at_once)}: it costs no memory."
    if size > _BATCH[1] and summed == 1:
        fix = f"Set per_device_train_batch_size={_BATCH[1]} or lower."
    yield Finding(
        id="effective-batch",
        severity="warning",
        title=f"{size} examples stand behind each update, {compared} than the usual {_BATCH[0]} to {_BATCH[1]}: "
        f"{price}.",
        evidence=f"{at_once} examples in memory at once × {summed} micro-batches",
        fix=fix,
        field="gradient_accumulation_steps",
    )


def _check_alpha(config: TrainConfig) -> Iterator[Finding]:
    ratio = config.lora_alpha / config.lora_r
    if config.use_rslora or _ALPHA[0] <= ratio <= _ALPHA[1]:
        return
    scaled, rate = ("down", "lower") if ratio < _ALPHA[0] else ("up", "higher")
    yield Finding(
        id="alpha-ratio",
        severity="warning",
        title=f"lora_alpha / lora_r is {ratio:g}, so the adapter's part is scaled {scaled}: "
        f"it acts like a {rate} learning rate.",
        evidence=f"lora_alpha={config.lora_alpha}, lora_r={config.lora_r}; usual is once or twice r",
        fix=f"Set lora_alpha={min(512, 2 * config.lora_r)}.",
        field="lora_alpha",
    )


def _check_dtype(config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    on_gpu, capability = hardware.device != "cpu", hardware.compute_capability
    fallback = "fp16" if on_gpu else "fp32"
    best = "bf16" if hardware.bf16 else fallback
    if config.dtype == "bf16" and not hardware.bf16:
        seen = "the CPU has no bf16 instructions"
        if capability:
            seen = f"compute capability {capability[0]}.{capability[1]}, bf16 wants 8.0"
        yield Finding(
            id="bf16-unsupported",
            severity="error" if on_gpu else "warning",
            title=f"{hardware.name} has no bf16: it would be emulated, slowly, or fail in a kernel.",
            evidence=seen,
            fix=f"Set dtype='{fallback}', or take TrainConfig.for_hardware(hardware.detect()).",
            field="dtype",
        )
    if config.dtype == "fp16" and not on_gpu:
        yield Finding(
            id="fp16-on-cpu",
            severity="error",
            title="fp16 training needs a GPU: its loss scaling does not exist on a CPU.",
            evidence=str(hardware),
            fix=f"Set dtype='{best}'.",
            field="dtype",
        )
    if config.dtype == "fp32" and on_gpu:
        yield Finding(
            id="fp32-on-gpu",
            severity="warning",
            title="fp32 takes twice the memory of 16-bit and is several times slower on a GPU.",
            evidence=str(hardware),
            fix=f"Set dtype='{best}'.",
            field="dtype",
        )


def _check_features(config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    if hardware.device == "cpu" and "8bit" in config.optim:
        yield Finding(
            id="optimizer-replaced",
            severity="note",
            title=f"{config.optim} does not exist on a CPU; adamw_torch takes its place.",
            evidence=str(hardware),
            fix="Set optim='adamw_torch', so that the record says what ran.",
            field="optim",
        )
    if config.packing:
        yield Finding(
            id="packing-leaks",
            severity="error",
            title="Packed examples would see each other: no backend here keeps them apart.",
            evidence="packing=True",
            fix="Set packing=False; group_by_length=True saves most of the padding.",
            field="packing",
        )


def _check_packages(config: TrainConfig) -> Iterator[Finding]:
    wanted = []  # a package, the setting that needs it, the way out
    if config.load_in_4bit:
        wanted.append(("bitsandbytes", "load_in_4bit", "load_in_4bit=False"))
    if config.backend == "unsloth":
        wanted.append(("unsloth", "backend", "backend='auto'"))
    if config.report_to != "none":
        wanted.append((config.report_to, "report_to", "report_to='none'"))
    for package, setting, way_out in wanted:
        if find_spec(package) is None:
            yield Finding(
                id="package-missing",
                severity="error",
                title=f"{setting}={getattr(config, setting)} needs the package {package}, which is not installed.",
                evidence=f"no package {package}",
                fix=f"Run: pip install {package}, or set {way_out}.",
                field=setting,
            )


def _check_warmup(config: TrainConfig, updates: int | None) -> Iterator[Finding]:
    if config.lr_scheduler_type == "constant" and config.warmup_steps:
        yield Finding(
            id="warmup-ignored",
            severity="warning",
            title="The schedule constant has no warm-up: the first update is made at the full learning rate.",
            evidence=f"lr_scheduler_type=constant, warmup_steps={config.warmup_steps}",
            fix="Set lr_scheduler_type='constant_with_warmup', or warmup_steps=0.",
            field="warmup_steps",
        )
    if config.lr_scheduler_type == "constant" or updates is None or config.warmup_steps <= updates / 2:
        return
    severity, title = "note", "More than half of the run is warm-up."
    if config.warmup_steps >= updates:
        severity = "warning"
        title = f"The warm-up outlasts the run: learning_rate={config.learning_rate:g} is never reached."
    yield Finding(
        id="warmup-too-long",
        severity=severity,
        title=title,
        evidence=f"warmup_steps={config.warmup_steps}, {updates} updates in all",
        fix=f"Set warmup_steps={updates // 20}: about 5 % of the run.",
        field="warmup_steps",
    )


def _check_marks(config: TrainConfig, updates: int) -> Iterator[Finding]:
    if config.save_steps > updates:
        yield Finding(
            id="save-never",
            severity="note",
            title="No checkpoint is written before the end: an interruption loses the run.",
            evidence=f"save_steps={config.save_steps}, {updates} updates in all",
            fix=f"Set save_steps={max(1, updates // 3)}.",
            field="save_steps",
        )
    if config.eval_steps > updates:
        yield Finding(
            id="eval-never",
            severity="note",
            title="The validation loss is measured only at the end, so overfitting would show too late.",
            evidence=f"eval_steps={config.eval_steps}, {updates} updates in all",
            fix=f"Set eval_steps={max(1, updates // 4)}.",
            field="eval_steps",
        )
    measured = updates // config.eval_steps if config.eval_steps else 0
    if config.early_stopping_patience >= measured > 0:
        patience = config.early_stopping_patience
        yield Finding(
            id="early-stopping-idle",
            severity="warning",
            title="Early stopping can never come into play: the run is over before.",
            evidence=f"early_stopping_patience={patience}, {measured} validation losses in {updates} updates",
            fix=f"Set eval_steps={max(1, updates // (3 * (patience + 1)))} or a smaller early_stopping_patience.",
            field="early_stopping_patience",
        )


def _check_few(config: TrainConfig, updates: int) -> Iterator[Finding]:
    if updates >= _FEW:
        return
    severity, title = "note", f"{updates} updates are enough to see that it runs, not to learn from."
    if config.dtype == "fp16":
        severity = "warning"
        title += " The first ones in fp16 are often skipped, while the loss scale is being found."
    yield Finding(
        id="few-updates",
        severity=severity,
        title=title,
        evidence=f"{updates} updates",
        fix=f"Give at least {_FEW}: raise max_steps or num_train_epochs.",
        field=_length_setting(config),
    )


def _check_rows(config: TrainConfig, rows: int) -> Iterator[Finding]:
    if rows < config.effective_batch_size:
        yield Finding(
            id="fewer-rows-than-batch",
            severity="warning",
            title="The whole training set is smaller than one batch: each update sees all of it.",
            evidence=f"{rows} rows, {config.effective_batch_size} examples an update",
            fix="Add rows, or lower gradient_accumulation_steps.",
            field="gradient_accumulation_steps",
        )
    passes = passes_over(config, rows)
    if rows < _SMALL_SET and passes > _OVERFITTING_PASSES:
        yield Finding(
            id="too-many-epochs",
            severity="warning",
            title=f"Each row is read {passes:.1f} times: a set this small is learnt by heart.",
            evidence=f"{rows} rows, {updates_in(config, rows)} updates of {config.effective_batch_size} examples",
            fix=f"Stay at {_OVERFITTING_PASSES} passes or below, or watch the validation loss turn up.",
            field=_length_setting(config),
        )


def _length_setting(config: TrainConfig) -> str:
    """The setting that decides how long the run is."""
    return "max_steps" if config.max_steps > 0 else "num_train_epochs"
