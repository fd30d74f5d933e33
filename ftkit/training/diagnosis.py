"""What a loss curve says, in plain words: each reading with the numbers that it rests on and what to try.

Rules of thumb on medians, which one odd batch cannot move. They read a curve as a person does, never raise, and know
neither the model nor the data: whether the answers are any good is the business of `evaluation`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from ftkit import tables

Pairs = Sequence[tuple[int, float]]

_ENOUGH_POINTS = 8
_SIGN = {"problem": "✗", "good": "✓", "note": "○"}  # the gravest first


@dataclass(frozen=True)
class Reading:
    """One thing that the curve says: `severity` is "problem", "note" or "good", `step` where it begins, if anywhere."""

    id: str
    severity: str
    title: str
    evidence: str
    advice: str = ""
    step: int | None = None


@tables.shown
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

    def _parts(self) -> list[str]:
        return [f"{_SIGN[r.severity]} {r.title}: {r.evidence} {r.advice}".rstrip() for r in self.readings]


def diagnose(history: Any, config: Any = None) -> Diagnosis:
    """Read a training curve.

    Args:
        history: a `History`, finished or not; or anything with its `points`, `losses` and `val_losses`.
        config: the run's `TrainConfig`, so that the advice can name its values.
    """
    train, val = (_finite(pairs) for pairs in (history.losses, history.val_losses))
    found = [*_not_a_number(history), *_skipped(history, config)]
    if not any(r.id == "nan" for r in found):
        found += _shape(train, config)
        if not any(r.id in ("diverging", "nothing-trained") for r in found):
            found += _validation(train, val, config)
    if all(r.severity == "note" and r.id in ("skipped", "spikes") for r in found):
        found.append(_healthy(train, val))
    gravity = list(_SIGN)
    return Diagnosis(tuple(sorted(found, key=lambda r: gravity.index(r.severity))))


def _finite(pairs: Pairs) -> list[tuple[int, float]]:
    return [(step, value) for step, value in pairs if math.isfinite(value)]


def _not_a_number(history: Any) -> list[Reading]:
    for name, pairs in (("training", history.losses), ("validation", history.val_losses)):
        if lost := [step for step, value in pairs if not math.isfinite(value)]:
            return [
                Reading(
                    id="nan",
                    severity="problem",
                    title=f"Not a number from step {lost[0]}",
                    evidence=f"the {name} loss is no number from step {lost[0]} on "
                    f"({len(lost)} of {len(pairs)} points).",
                    advice="The weights are spoiled: go back to an earlier checkpoint or start again, with a lower "
                    "learning_rate, more warmup_steps, or dtype='bf16' or 'fp32' in place of fp16.",
                    step=lost[0],
                )
            ]
    return []


def _skipped(history: Any, config: Any) -> list[Reading]:
    counted = [(p.step, p.applied) for p in history.points if getattr(p, "applied", None) is not None]
    steps, applied = counted[-1] if counted else (0, 0)
    missing = steps - applied
    if missing <= 0:
        return []
    many = applied == 0 or missing > max(10, 0.1 * steps)
    advice = "Normal in fp16: the scaler needs some steps to find its scale."
    if many:
        rate = _now(config, "learning_rate")
        advice = f"dtype='bf16' where the device has it, else 'fp32' or a lower learning_rate{rate}."
    return [
        Reading(
            id="skipped",
            severity="problem" if many else "note",
            title="Updates are skipped" if many else "A few updates were skipped",
            evidence=f"{applied} of {steps} updates were applied; the rest were skipped because a gradient overflowed.",
            advice=advice,
            step=next((step for step, count in counted if count < step), None),
        )
    ]


def _shape(train: Pairs, config: Any) -> list[Reading]:
    """Readings of the training loss alone."""
    values = [value for _, value in train]
    if values and max(map(abs, values)) < 1e-6:
        return [
            Reading(
                id="nothing-trained",
                severity="problem",
                title="Nothing is trained",
                evidence=f"the loss is zero at all {len(values)} points.",
                advice="Every label is masked: look at chat.show_example, and at max_length.",
                step=train[0][0],
            )
        ]
    if len(values) < 4:
        return []
    if reading := _diverging(train, config):
        return [reading]
    if len(values) < _ENOUGH_POINTS:
        return []
    return [reading for reading in (_flat(values, config) or _levelled(train), _spikes(train, config)) if reading]


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
    rate, warmup = _now(config, "learning_rate"), _now(config, "warmup_steps")
    return Reading(
        id="diverging",
        severity="problem",
        title=f"Diverging from step {step}",
        evidence=f"training loss was {low:.3g} nats a token near step {step} and is {end:.3g} at the end.",
        advice=f"Divide learning_rate by three to ten{rate}, or warm up longer{warmup}.",
        step=step,
    )


def _flat(values: Sequence[float], config: Any) -> Reading | None:
    """First and last third are the same within what chance does to them; a loss that halved has fallen."""
    begin, _, end, chance = _thirds(values)
    if begin - end > max(0.05 * begin, min(chance, 0.5 * begin)):
        return None
    rate = _now(config, "learning_rate")
    return Reading(
        id="flat",
        severity="problem",
        title="Flat",
        evidence=f"training loss was {begin:.3g} nats a token in the first third of the run and {end:.3g} in the last; "
        f"{chance:.2g} may be chance.",
        advice=f"Raise learning_rate three to ten times{rate}. If that changes nothing, look at the mask "
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
        id="levelled",
        severity="note",
        title=f"Levelled off at {end:.2g}",
        evidence=f"training loss fell from {start:.3g} and has stayed near {end:.3g} nats a token for the last third "
        "of the run.",
        advice="Normal where answers cannot be foreseen word by word. On a task with one right answer it is not: check "
        "that each answer belongs to its question, then try a higher learning_rate or lora_r.",
        step=train[len(train) // 2][0],
    )


def _spikes(train: Pairs, config: Any) -> Reading | None:
    values = [value for _, value in train]
    least = max(6 * _noise(values), 0.25 * median(values[:3]), 0.1)
    steps, heights = [], []
    for i in range(2, len(values) - 2):
        around = (median(values[max(0, i - 3) : i]), median(values[i + 1 : i + 4]))
        if all(values[i] - m > max(least, 0.5 * m) for m in around):
            steps.append(train[i][0])
            heights.append(values[i])
    if not steps:
        return None
    many = len(steps) > max(1, len(values) // 30)
    where = ", ".join(map(str, steps[:5])) + (" and more" if len(steps) > 5 else "")
    return Reading(
        id="spikes",
        severity="problem" if many else "note",
        title="Spikes" if many else "A spike that passed",
        evidence=f"loss jumps up to {max(heights):.3g} and comes back, at step {where}.",
        advice="Look at those batches for odd rows; a lower learning_rate, more warmup_steps or a smaller max_grad_norm"
        f"{_now(config, 'max_grad_norm')} calm it.",
        step=steps[0],
    )


def _validation(train: Pairs, val: Pairs, config: Any) -> list[Reading]:
    """Readings of the validation loss beside the training loss."""
    if not val or len(train) < 2:
        return []
    best_step, best = min(val, key=lambda pair: pair[1])
    last_step, last = val[-1]
    at_best = median([value for step, value in train if step <= best_step][-3:] or [train[0][1]])
    end = median([value for _, value in train][-3:])
    if last_step > best_step and last > 1.05 * best + 0.01 and end <= 1.05 * at_best:
        length = "max_steps" if config is not None and config.max_steps > 0 else "num_train_epochs"
        return [
            Reading(
                id="overfitting",
                severity="problem",
                title=f"Overfitting from step {best_step}",
                evidence=f"validation loss was lowest at step {best_step} ({best:.3g}) and has risen to {last:.3g}, "
                f"while training loss went from {at_best:.3g} to {end:.3g}.",
                advice="Stop there (early_stopping_patience=2 keeps that adapter), read the rows fewer times"
                f"{_now(config, length, named=True)}, or get more of them.",
                step=best_step,
            )
        ]
    if last > 2 * end + 0.3 and len(train) >= _ENOUGH_POINTS:
        return [
            Reading(
                id="gap",
                severity="problem",
                title="Knows its rows, not the task",
                evidence=f"training loss ends at {end:.3g}, validation at {last:.3g} nats a token.",
                advice="The rows are memorised, or validation is of another kind: "
                "more and more varied rows, fewer epochs.",
                step=last_step,
            )
        ]
    return []


def _healthy(train: Pairs, val: Pairs) -> Reading:
    """Nothing is wrong, or there is too little to say so."""
    if len(train) < _ENOUGH_POINTS:
        return Reading(
            id="too-early",
            severity="note",
            title="Too early to tell",
            evidence=f"the curve has {len(train)} points so far; {_ENOUGH_POINTS} are the least to read it by.",
            advice="Train on, or lower logging_steps.",
        )
    start, end = train[0][1], median([value for _, value in train][-5:])
    seen = f", and validation ends at {val[-1][1]:.3g}" if val else "; validation was not measured"
    fell = f"training loss fell from {start:.3g} to {end:.3g} nats a token{seen}."
    return Reading(id="healthy", severity="good", title="Healthy", evidence=fell)


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


def _now(config: Any, name: str, *, named: bool = False) -> str:
    """The setting's value, and its usual range where it lies outside."""
    if config is None:
        return ""
    value, usual = getattr(config, name), config.__dataclass_fields__[name].metadata["typical"]
    outside = f", usual {usual[0]:g} to {usual[1]:g}" if usual and not usual[0] <= value <= usual[1] else ""
    return f" ({name + ' ' if named else ''}now {value:g}{outside})"
