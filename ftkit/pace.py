"""How fast this machine trains, from a step that was measured: never from a table of somebody else's machine."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError
from ftkit.history import Point, read_points
from ftkit.runs import Run

# Settings that change what a step costs in a way that cannot be scaled from another one.
_DECISIVE = ("backend", "load_in_4bit", "dtype", "gradient_checkpointing", "use_dora", "target_modules")


@dataclass(frozen=True)
class Pace:
    """Seconds of training an example, and of one validation, with the settings under which they were measured."""

    seconds_per_example: float
    source: str
    tokens_per_example: float | None = None
    seconds_per_evaluation: float = 0.0
    config: TrainConfig | None = None

    @classmethod
    def of_step(cls, seconds: float, config: TrainConfig, source: str = "given") -> Self:
        """From the seconds of one weight update under `config`.

        Raises:
            ConfigError: not a positive number of seconds.
        """
        if not 0 < seconds < float("inf"):
            raise ConfigError(
                f"seconds_per_step={seconds!r}: a step takes more than 0 seconds. Leave it out to measure one."
            )
        return cls(seconds / config.effective_batch_size, source, config=config)

    @classmethod
    def of_points(cls, points: Sequence[Point], config: TrainConfig, source: str) -> Self | None:
        """From a curve: the median time between two points; None where there are fewer than two training points.

        The first update is left out where there are others: it compiles and warms up.
        """
        deltas = _seconds_per_update(points)
        if not deltas:
            return None
        steps = max(p.step for p in points)
        tokens = max((p.tokens or 0 for p in points), default=0)
        return cls(
            statistics.median(deltas) / config.effective_batch_size,
            source,
            tokens / (steps * config.effective_batch_size) if tokens else None,
            _seconds_per_evaluation(points),
            config,
        )

    @classmethod
    def of_runs(cls, root: str | Path, base_model: str, device: str) -> Self | None:
        """From the newest finished run below `root` with this base model on this device; None where there is none."""
        for path in sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
            run = Run(path.parent)
            try:
                facts = run.facts.get("train", {})
                if (facts.get("base_model"), facts.get("device")) != (base_model, device):
                    continue
                config = TrainConfig.load(run / "config.yaml")
                pace = cls.of_points(read_points(run / "history.csv"), config, f"run {path.parent.name}")
            except (DataError, ConfigError, UnicodeDecodeError, OSError):
                continue  # a damaged run is the table's business: here it only measures nothing
            if pace is not None:
                return pace
        return None

    def other_than(self, config: TrainConfig) -> tuple[str, ...]:
        """The settings in which `config` differs from the measured ones so that a step costs something else."""
        if self.config is None:
            return ()
        return tuple(name for name in _DECISIVE if getattr(config, name) != getattr(self.config, name))

    def seconds(self, examples: float, evaluations: float, tokens_per_example: float | None = None) -> float:
        """Seconds for so many examples and validations; scaled by length where both lengths are known."""
        scale = 1.0
        if tokens_per_example and self.tokens_per_example:
            scale = tokens_per_example / self.tokens_per_example
        return scale * (examples * self.seconds_per_example + evaluations * self.seconds_per_evaluation)


def _seconds_per_update(points: Sequence[Point]) -> list[float]:
    """Times between neighbouring training points, a validation between them left out."""
    clean = []
    for before, after in itertools.pairwise(points):
        trained = before.loss is not None and after.loss is not None
        if trained and before.seconds is not None and after.seconds is not None and after.step > before.step:
            clean.append((after.seconds - before.seconds) / (after.step - before.step))
    return [s for s in clean if s > 0]


def _seconds_per_evaluation(points: Sequence[Point]) -> float:
    """Median time from a training point to the validation of the same step; 0 where none was measured."""
    spent = [
        after.seconds - before.seconds
        for before, after in itertools.pairwise(points)
        if after.val_loss is not None
        and before.step == after.step
        and before.seconds is not None
        and after.seconds is not None
    ]
    return max(0.0, statistics.median(spent)) if spent else 0.0
