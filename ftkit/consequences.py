"""What the settings mean for a run, computed without running it: size, batch, updates, minutes, memory, step size.

Knows no widgets: `panel` shows what is computed here.
"""

import html
import math
from dataclasses import dataclass, field
from typing import Any

from ftkit import check_schedule
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError
from ftkit.findings import Finding
from ftkit.hardware import Hardware
from ftkit.pace import Pace
from ftkit.shapes import ModelShape

_CURVE_POINTS = 121


@dataclass(frozen=True)
class Situation:
    """What is known besides the settings: the model's shape, the rows, the machine and a measured step."""

    hardware: Hardware
    shape: ModelShape | None = None
    rows: int | None = None
    lengths: tuple[int, ...] = field(default=(), repr=False)  # tokens of each row, or of a sample of them
    pace: Pace | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row; None where lengths are unknown."""
        return max(self.lengths, default=None)

    def mean_length(self, config: TrainConfig) -> float | None:
        """Mean tokens of a row after the cut; None where lengths are unknown."""
        return sum(min(n, config.max_length) for n in self.lengths) / len(self.lengths) if self.lengths else None


@dataclass(frozen=True)
class Consequences:
    """What one config means in one situation. None stands for what cannot be known, never for zero."""

    config: TrainConfig
    situation: Situation
    trainable: int | None
    total: int | None
    updates_per_epoch: int | None
    updates: int | None
    seconds: float | None
    memory: Any = None  # memory.MemoryEstimate
    memory_problem: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def effective_batch_size(self) -> int:
        """Examples behind each weight update."""
        return self.config.effective_batch_size

    @property
    def epochs(self) -> float | None:
        """Passes over the data that the run makes."""
        if self.updates is None or not self.updates_per_epoch:
            return None
        return self.updates / self.updates_per_epoch

    @property
    def verdict(self) -> str | None:
        """What `memory.verdict` says of the estimate on this device; None where there is no estimate."""
        from ftkit.memory import verdict

        return None if self.memory is None else verdict(self.memory, self.situation.hardware.memory_gib)

    @property
    def learning_rates(self) -> list[tuple[float, float]]:
        """The learning rate of each update, as `(update, rate)`, at most a hundred or so of them."""
        total = self.updates or max(4 * self.config.warmup_steps, 100)
        stops = sorted(
            {round(total * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)}
            | {min(self.config.warmup_steps, total)}
        )
        return [(float(step), learning_rate(self.config, step, total)) for step in stops]

    def facts(self) -> dict[str, str]:
        """The same in words, with units."""
        known = {
            "trainable parameters": _share(self.trainable, self.total),
            "effective batch size": f"{self.effective_batch_size} examples",
            "updates an epoch": "rows unknown" if self.updates_per_epoch is None else f"{self.updates_per_epoch:,}",
            "updates in all": "rows unknown" if self.updates is None else f"{self.updates:,}",
            "time on this machine": "not measured yet" if self.seconds is None else clock(self.seconds),
            "memory": self.memory_problem
            if self.memory is None
            else f"{self.memory.likely_gib:.1f} GiB ({self.memory.low_gib:.1f} to {self.memory.high_gib:.1f}) of "
            f"{self.situation.hardware.memory_gib:.1f} GiB",
        }
        return known | {f"{f.severity}: {f.field or f.id}": f"{f.title} {f.fix}" for f in self.findings}

    def __str__(self) -> str:
        return "\n".join(f"{name:>22}  {value}" for name, value in self.facts().items())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in self.facts().items())
        return f"<table>{rows}</table>"


def consequences(config: TrainConfig, situation: Situation) -> Consequences:
    """Work out what `config` means; takes milliseconds and loads no weights."""
    per_epoch = updates_per_epoch(config, situation.rows) if situation.rows else None
    updates = check_schedule.updates_in(config, situation.rows)
    trainable, total = _parameters(config, situation)
    memory, problem = _memory(config, situation)
    return Consequences(
        config,
        situation,
        trainable,
        total,
        per_epoch,
        updates,
        _seconds(config, situation, updates),
        memory,
        problem,
        _findings(config, situation),
    )


def updates_per_epoch(config: TrainConfig, rows: int) -> int:
    """Weight updates in one pass over the data."""
    return check_schedule.updates_in(config.replace(max_steps=-1, num_train_epochs=1.0), rows) or 1


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The step size at an update: the warm-up and decay of `transformers.get_scheduler`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return peak
    if step < warmup:
        return peak * step / max(1, warmup)
    if config.lr_scheduler_type == "constant_with_warmup":
        return peak
    passed = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.lr_scheduler_type == "linear":
        return peak * (1.0 - passed)
    return peak * 0.5 * (1.0 + math.cos(math.pi * passed))


def clock(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _share(trainable: int | None, total: int | None) -> str:
    if trainable is None:
        return "model unknown"
    return f"{trainable:,}" + (f" ({100 * trainable / total:.2f} %)" if total else "")


def _seconds(config: TrainConfig, situation: Situation, updates: int | None) -> float | None:
    if situation.pace is None or updates is None:
        return None
    evaluations = 1 + (updates // config.eval_steps if config.eval_steps else 0)
    examples = updates * config.effective_batch_size
    if situation.rows:  # the last update of a pass may see fewer
        per_epoch = updates_per_epoch(config, situation.rows)
        examples = min(examples, round(updates / per_epoch * situation.rows))
    return situation.pace.seconds(examples, evaluations, situation.mean_length(config))


def _parameters(config: TrainConfig, situation: Situation) -> tuple[int | None, int | None]:
    """Trainable and all parameters, the adapter's among them, as PEFT counts."""
    shape = situation.shape
    if shape is None:
        return None, None
    try:
        trainable = shape.lora_parameters(config.lora_r, config.target_modules, use_dora=config.use_dora)
    except ConfigError:  # names that this model lacks: the findings say so
        return None, shape.parameters
    return trainable, shape.parameters + trainable


def _findings(config: TrainConfig, situation: Situation) -> tuple[Finding, ...]:
    from ftkit import preflight

    return preflight.check_settings(
        config, situation.hardware, situation.shape, rows=situation.rows, longest=situation.longest
    )


def _memory(config: TrainConfig, situation: Situation) -> tuple[Any, str]:
    from ftkit import memory

    if situation.shape is None:
        return None, "model unknown"
    device = "cpu" if situation.hardware.device == "cpu" else "cuda"
    try:
        found = memory.estimate(
            situation.shape, config, device=device, longest=situation.longest, loss_path=memory.TRL_LOSS_PATH
        )
    except FtkitError as error:
        return None, str(error)
    return found, ""
