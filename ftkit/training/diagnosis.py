"""What a loss curve says, in plain words: each reading with the numbers it rests on and what to try.

Rules of thumb on medians, which one odd batch cannot move; they read a curve as a person does, and never raise.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Protocol

Pairs = Sequence[tuple[int, float]]

_ENOUGH_POINTS = 8


class Curve(Protocol):
    """What is read: a `History`, or anything with these three."""

    @property
    def points(self) -> Any:
        """Rows with `step` and, where updates were counted, `applied`."""

    @property
    def losses(self) -> Any:
        """Training loss as `(step, loss)`."""

    @property
    def val_losses(self) -> Any:
        """Validation loss as `(step, loss)`."""


@dataclass(frozen=True)
class Reading:
    """One thing that the curve says. `severity` is "problem", "note" or "good"; `step` is where it begins, if anywhere."""

    id: str
    severity: str
    title: str
    evidence: str
    advice: str
    step: int | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All readings of one curve, the gravest first."""

    readings: tuple[Reading, ...]

    @property
    def verdict(self) -> str:
        """The gravest reading's title."""
        return self.readings[0].title

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all readings, such as `("overfitting",)`."""
        return tuple(reading.id for reading in self.readings)

    @property
    def healthy(self) -> bool:
        """Whether no reading is a problem, and there was enough to read."""
        return "too-early" not in self.ids and all(r.severity != "problem" for r in self.readings)

    def __str__(self) -> str:
        return "\n".join(f"{_SIGN[r.severity]} {r.title}: {r.evidence} {r.advice}".rstrip() for r in self.readings)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td {_LEFT}>{_SIGN[r.severity]} <b>{html.escape(r.title)}</b></td>"
            f"<td {_LEFT}>{html.escape(r.evidence)}</td><td {_LEFT}>{html.escape(r.advice)}</td></tr>"
            for r in self.readings
        )
        return f"<table><tr><th {_LEFT}>reading</th><th {_LEFT}>because</th><th {_LEFT}>what to try</th></tr>{cells}</table>"


_LEFT = 'style="text-align:left"'

_SIGN = {"problem": "✗", "note": "○", "good": "✓"}


def diagnose(history: Curve, config: Any = None) -> Diagnosis:
    """Read a training curve.

    Args:
        history: a `History`, finished or not.
        config: the run's `TrainConfig`, so that the advice can name its values.
    """
    train = _finite(history.losses)
    val = _finite(history.val_losses)
    found = [*_not_a_number(history), *_skipped(history, config)]
    if not any(r.id == "nan" for r in found):
        shape = _shape(train, config)
        found += shape
        if not any(r.id in ("diverging", "nothing-trained") for r in shape):
            found += _validation(train, val, config)
    if not found or all(r.id in ("skipped", "spikes") and r.severity == "note" for r in found):
        found.append(_healthy(train, val) if len(train) >= _ENOUGH_POINTS else _too_early(len(train)))
    rank = {"problem": 0, "good": 1, "note": 2}
    return Diagnosis(tuple(sorted(found, key=lambda r: rank[r.severity])))


def _finite(pairs: Pairs) -> list[tuple[int, float]]:
    return [(step, value) for step, value in pairs if math.isfinite(value)]


def _not_a_number(history: Curve) -> list[Reading]:
    for name, pairs in (("training", history.losses), ("validation", history.val_losses)):
        if lost := [step for step, value in pairs if not math.isfinite(value)]:
            where = f"the {name} loss is no number from step {lost[0]} on ({len(lost)} of {len(pairs)} points)."
            return [
                Reading(
                    "nan",
                    "problem",
                    f"Not a number from step {lost[0]}",
                    where,
                    "The weights are spoiled: go back to an earlier checkpoint or start again, with a lower learning_rate, "
                    "more warmup_steps, or dtype='bf16' or 'fp32' in place of fp16.",
                    lost[0],
                )
            ]
    return []


def _skipped(history: Curve, config: Any) -> list[Reading]:
    counted = [(p.step, p.applied) for p in history.points if getattr(p, "applied", None) is not None]
    if not counted:
        return []
    steps, applied = counted[-1]
    missing = steps - applied
    if missing <= 0:
        return []
    first = next((step for step, count in counted if count < step), None)
    evidence = f"{applied} of {steps} updates were applied; the rest were skipped because a gradient overflowed."
    if applied == 0 or missing > max(10, 0.1 * steps):
        return [
            Reading(
                "skipped",
                "problem",
                "Updates are skipped",
                evidence,
                f"dtype='bf16' where the device has it, else 'fp32' or a lower learning_rate{_now(config, 'learning_rate')}.",
                first,
            )
        ]
    return [
        Reading(
            "skipped",
            "note",
            "A few updates were skipped",
            evidence,
            "Normal in fp16: the scaler needs some steps to find its scale.",
            first,
        )
    ]


def _shape(train: Pairs, config: Any) -> list[Reading]:
    """Readings of the training loss alone."""
    values = [value for _, value in train]
    if values and max(map(abs, values)) < 1e-6:
        return [
            Reading(
                "nothing-trained",
                "problem",
                "Nothing is trained",
                f"the loss is zero at all {len(values)} points.",
                "Every label is masked: look at chat.show_example, and at max_length.",
                train[0][0],
            )
        ]
    if len(values) < 4:
        return []
    if reading := _diverging(train, config):
        return [reading]
    if len(values) < _ENOUGH_POINTS:
        return []
    return [reading for reading in (_flat(train, config) or _levelled(train), _spikes(train, config)) if reading]


def _diverging(train: Pairs, config: Any) -> Reading | None:
    """The end lies well above the lowest stretch before it, and not because of one odd batch."""
    values = [value for _, value in train]
    smooth = _rolling(values, 5)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    end, start = median(values[-max(3, len(values) // 6) :]), median(values[:3])
    # the first loss is the base model's; one that is never seen again was no odd batch
    exploded = end > 2 * max(values[0], 0.25) and min(values[2:]) > 1.3 * values[0]
    low = values[0] if exploded else min(smooth[lowest], start)
    if not exploded and end - low <= max(0.3 * low, 0.3 * (start - low), 4 * _noise(values), 0.1):
        return None
    step = train[0][0] if exploded or start <= smooth[lowest] else train[lowest][0]
    return Reading(
        "diverging",
        "problem",
        f"Diverging from step {step}",
        f"training loss was {low:.3g} nats a token near step {step} and is {end:.3g} at the end.",
        f"Divide learning_rate by three to ten{_now(config, 'learning_rate')}, or warm up longer{_now(config, 'warmup_steps')}.",
        step,
    )


def _flat(train: Pairs, config: Any) -> Reading | None:
    """First and last third are the same within what chance does to them; a loss that halved has fallen."""
    values = [value for _, value in train]
    begin, _, end, chance = _thirds(values)
    if begin - end > max(0.05 * begin, min(chance, 0.5 * begin)):
        return None
    return Reading(
        "flat",
        "problem",
        "Flat",
        f"training loss was {begin:.3g} nats a token in the first third of the run and {end:.3g} in the last; "
        f"{chance:.2g} may be chance.",
        f"Raise learning_rate three to ten times{_now(config, 'learning_rate')}. If that changes nothing, look at the mask "
        "(chat.show_example) and at target_modules; a loss that starts near zero has nothing left to learn.",
    )


def _levelled(train: Pairs) -> Reading | None:
    """It fell, and then stopped falling while still high."""
    values = [value for _, value in train]
    start = max(median(values[:3]), values[0])
    _, middle, end, chance = _thirds(values)
    if len(values) < 12 or end < 0.35 * start or middle - end > max(0.07 * start, chance):
        return None
    return Reading(
        "levelled",
        "note",
        f"Levelled off at {end:.2g}",
        f"training loss fell from {start:.3g} and has stayed near {end:.3g} nats a token for the last third of the run.",
        "Normal where answers cannot be foreseen word by word. On a task with one right answer it is not: check that each answer "
        "belongs to its question, then try a higher learning_rate or lora_r.",
        train[len(train) // 2][0],
    )


def _spikes(train: Pairs, config: Any) -> Reading | None:
    values = [value for _, value in train]
    least = max(6 * _noise(values), 0.25 * median(values[:3]), 0.1)
    jumps = []
    for i in range(2, len(values) - 2):
        around = (median(values[max(0, i - 3) : i]), median(values[i + 1 : i + 4]))
        if all(values[i] - m > max(least, 0.5 * m) for m in around):
            jumps.append(train[i])
    if not jumps:
        return None
    steps, many, worst = (
        [step for step, _ in jumps],
        len(jumps) > max(1, len(values) // 30),
        max(jumps, key=lambda j: j[1])[1],
    )
    return Reading(
        "spikes",
        "problem" if many else "note",
        "Spikes" if many else "A spike that passed",
        f"loss jumps up to {worst:.3g} and comes back, at step {', '.join(map(str, steps[:5]))}{' and more' if len(steps) > 5 else ''}.",
        "Look at those batches for odd rows; a lower learning_rate, more warmup_steps or a smaller max_grad_norm"
        f"{_now(config, 'max_grad_norm')} calm it.",
        steps[0],
    )


def _validation(train: Pairs, val: Pairs, config: Any) -> list[Reading]:
    if not val or len(train) < 2:
        return []
    best_step, best = min(val, key=lambda pair: pair[1])
    last_step, last = val[-1]
    at_best = median([value for step, value in train if step <= best_step][-3:] or [train[0][1]])
    end = median([value for _, value in train][-3:])
    if last_step > best_step and last > 1.05 * best + 0.01 and end <= 1.05 * at_best:
        return [
            Reading(
                "overfitting",
                "problem",
                f"Overfitting from step {best_step}",
                f"validation loss was lowest at step {best_step} ({best:.3g}) and has risen to {last:.3g}, while training loss went "
                f"from {at_best:.3g} to {end:.3g}.",
                f"Stop there (early_stopping_patience=2 keeps that adapter), read the rows fewer times{_passes(config)}, or get more of them.",
                best_step,
            )
        ]
    if last > 2 * end + 0.3 and len(train) >= _ENOUGH_POINTS:
        return [
            Reading(
                "gap",
                "problem",
                "Knows its rows, not the task",
                f"training loss ends at {end:.3g}, validation at {last:.3g} nats a token.",
                "The rows are memorised, or validation is of another kind: more and more varied rows, fewer epochs.",
                last_step,
            )
        ]
    return []


def _healthy(train: Pairs, val: Pairs) -> Reading:
    start, end = train[0][1], median([value for _, value in train][-5:])
    seen = f", and validation ends at {val[-1][1]:.3g}" if val else "; validation was not measured"
    return Reading(
        "healthy", "good", "Healthy", f"training loss fell from {start:.3g} to {end:.3g} nats a token{seen}.", ""
    )


def _too_early(points: int) -> Reading:
    return Reading(
        "too-early",
        "note",
        "Too early to tell",
        f"the curve has {points} points so far; {_ENOUGH_POINTS} are the least to read it by.",
        "Train on, or lower logging_steps.",
    )


def _thirds(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Medians of the three thirds, and the difference between two of them that chance makes one time in twenty."""
    k = len(values) // 3
    chance = 2 * 1.25 * _noise(values) * math.sqrt(2 / k)  # 1.25: a median is that much less sure than a mean
    return median(values[:k]), median(values[k:-k]), median(values[-k:]), chance


def _noise(values: Sequence[float]) -> float:
    """Standard deviation from one step to the next, by the median of differences: a trend or a spike does not enter."""
    jumps = [abs(b - a) for a, b in pairwise(values)]
    return median(jumps) / (0.6745 * math.sqrt(2)) if jumps else 0.0


def _rolling(values: Sequence[float], width: int) -> list[float]:
    """Medians of `width` neighbours that follow each other; one for each point that has them all."""
    width = min(width, len(values))
    return [median(values[i : i + width]) for i in range(len(values) - width + 1)]


def _passes(config: Any) -> str:
    """Whichever setting decides how long a run is."""
    return _now(config, "max_steps" if config is not None and config.max_steps > 0 else "num_train_epochs", named=True)


def _now(config: Any, name: str, *, named: bool = False) -> str:
    """The setting's value, and its usual range where it lies outside."""
    if config is None:
        return ""
    value, usual = getattr(config, name), config.__dataclass_fields__[name].metadata["typical"]
    outside = f", usual {usual[0]:g} to {usual[1]:g}" if usual and not usual[0] <= value <= usual[1] else ""
    return f" ({name + ' ' if named else ''}now {value:g}{outside})"
