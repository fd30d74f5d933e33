"""Settings alone, before any model or data: unusual values, what the machine cannot do, and the length of the run.

Knows the knobs only through `TrainConfig`'s own fields.
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from ftkit.config import TrainConfig
from ftkit.hardware import Hardware, launch
from ftkit.preflight.report import Finding, finding

_ALPHA = (0.5, 4.0)
_BATCH = (8, 32)
_FEW = 10
_SMALL_SET = 1_000
_OVERFITTING_PASSES = 3


def check_values(
    config: TrainConfig, hardware: Hardware, *, rows: int | None = None, longest: int | None = None
) -> Iterator[Finding]:
    """All findings about the settings; without `rows` the length of the run is known only where `max_steps` says it."""
    updates = updates_in(config, rows)
    yield from _check_usual(config, updates, longest)
    yield from _check_batch(config)
    yield from _check_alpha(config)
    yield from _check_device(config, hardware)
    if config.packing:
        yield finding("packing-leaks")
    yield from _check_packages(config)
    yield from _check_warmup(config, updates)
    if updates is not None:
        yield from _check_updates(config, updates)
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
    micro_batches = math.ceil(rows / config.per_device_train_batch_size)
    return math.ceil(micro_batches / (config.gradient_accumulation_steps * launch().processes))


def _check_usual(config: TrainConfig, updates: int | None, longest: int | None) -> Iterator[Finding]:
    """Values outside the usual range of their knob, where nothing about this run makes them right."""
    for spec in fields(config):
        usual, value = spec.metadata["typical"], getattr(config, spec.name)
        if usual is None or usual[0] <= value <= usual[1] or _is_fine(spec.name, config, updates, longest):
            continue
        side, better = ("below", usual[0]) if value < usual[0] else ("above", usual[1])
        effect = spec.metadata[side] and f": {spec.metadata[side]}"
        about = {"field": spec.name, "value": value, "side": side, "usual": usual, "better": better, "effect": effect}
        yield finding("unusual-setting", help=spec.metadata["help"], **about)


def _is_fine(name: str, config: TrainConfig, updates: int | None, longest: int | None) -> bool:
    """Whether an unusual value is right in this run."""
    if name == "warmup_steps":
        short = updates is not None and 0.03 <= config.warmup_steps / updates <= 0.5
        return short or config.lr_scheduler_type == "constant"
    if name == "num_train_epochs":
        return config.max_steps > 0
    return name == "max_length" and longest is not None and longest <= config.max_length < 512


def _check_batch(config: TrainConfig) -> Iterator[Finding]:
    processes = launch().processes
    size, at_once = _examples_an_update(config), config.per_device_train_batch_size * processes
    shared = f" × {processes} processes" if processes > 1 else ""
    about: dict[str, Any] = {"config": config, "size": size, "shared": shared}
    if size < _BATCH[0]:
        yield finding("effective-batch", "small", wanted=max(1, _BATCH[0] // at_once), **about)
    elif size > _BATCH[1]:
        variant = "at once" if size == at_once else ""
        yield finding("effective-batch", variant, wanted=max(1, _BATCH[1] // at_once), **about)


def _examples_an_update(config: TrainConfig) -> int:
    """Over all processes that torchrun or accelerate started."""
    return config.effective_batch_size * launch().processes


def _check_alpha(config: TrainConfig) -> Iterator[Finding]:
    ratio = config.lora_alpha / config.lora_r
    if config.use_rslora or _ALPHA[0] <= ratio <= _ALPHA[1]:
        return
    scaled, rate = ("down", "lower") if ratio < _ALPHA[0] else ("up", "higher")
    wanted = min(512, 2 * config.lora_r)
    yield finding("alpha-ratio", config=config, ratio=ratio, scaled=scaled, rate=rate, wanted=wanted)


def _check_device(config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    on_gpu, capability = hardware.device != "cpu", hardware.compute_capability
    fallback = "fp16" if on_gpu else "fp32"
    best = "bf16" if hardware.bf16 else fallback
    if config.dtype == "bf16" and not hardware.bf16:
        seen = "the CPU has no bf16 instructions"
        if capability:
            seen = f"compute capability {capability[0]}.{capability[1]}, bf16 wants 8.0"
        yield finding("bf16-unsupported", hardware.device, hardware=hardware, seen=seen, fallback=fallback)
    if config.dtype == "fp16" and not on_gpu:
        yield finding("fp16-on-cpu", hardware=hardware, best=best)
    if config.dtype == "fp32" and on_gpu:
        yield finding("fp32-on-gpu", hardware=hardware, best=best)
    if not on_gpu and "8bit" in config.optim:
        yield finding("optimizer-replaced", hardware=hardware, config=config)


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
            value = getattr(config, setting)
            yield finding("package-missing", package=package, field=setting, value=value, way_out=way_out)


def _check_warmup(config: TrainConfig, updates: int | None) -> Iterator[Finding]:
    if config.lr_scheduler_type == "constant":
        if config.warmup_steps:
            yield finding("warmup-ignored", config=config)
    elif updates is not None and config.warmup_steps > updates / 2:
        variant = "never" if config.warmup_steps >= updates else ""
        yield finding("warmup-too-long", variant, config=config, updates=updates, wanted=updates // 20)


def _check_updates(config: TrainConfig, updates: int) -> Iterator[Finding]:
    about: dict[str, Any] = {"config": config, "updates": updates}
    if config.save_steps > updates:
        yield finding("save-never", **about, wanted=max(1, updates // 3))
    if config.eval_steps > updates:
        yield finding("eval-never", **about, wanted=max(1, updates // 4))
    measured = updates // config.eval_steps if config.eval_steps else 0
    if config.early_stopping_patience >= measured > 0:
        wanted = max(1, updates // (3 * (config.early_stopping_patience + 1)))
        yield finding("early-stopping-idle", **about, measured=measured, wanted=wanted)
    if updates < _FEW:
        yield finding("few-updates", config.dtype, **about, field=_length_setting(config))


def _check_rows(config: TrainConfig, rows: int) -> Iterator[Finding]:
    if rows < (size := _examples_an_update(config)):
        yield finding("fewer-rows-than-batch", size=size, total=rows)
    passes = passes_over(config, rows)
    if rows < _SMALL_SET and passes > _OVERFITTING_PASSES:
        about: dict[str, Any] = {"passes": passes, "total": rows, "updates": updates_in(config, rows)}
        yield finding("too-many-epochs", config=config, field=_length_setting(config), **about)


def _length_setting(config: TrainConfig) -> str:
    """The setting that decides how long the run is."""
    return "max_steps" if config.max_steps > 0 else "num_train_epochs"
