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

from ftkit import files, tables

Pairs = Sequence[tuple[int, float]]

_ENOUGH_POINTS = 8
_TEXTS: dict[str, Any] = files.sample("readings")
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
    curves = (history.losses, history.val_losses)
    train, val = ([(step, value) for step, value in pairs if math.isfinite(value)] for pairs in curves)
    found = [*_not_a_number(history), *_skipped(history, config)]
    if not any(r.id == "nan" for r in found):
        found += _shape(train, config)
        if not any(r.id in ("diverging", "nothing-trained") for r in found):
            found += _validation(train, val, config)
        if any(r.id == "overfitting" for r in found):  # rows known by heart leave nothing to fall
            found = [r for r in found if r.id != "flat"]
    if all(r.severity == "note" and r.id in ("skipped", "spikes") for r in found):
        found.append(_healthy(train, val))
    gravity = list(_SIGN)
    return Diagnosis(tuple(sorted(found, key=lambda r: gravity.index(r.severity))))


def _reading(id: str, variant: str = "", *, step: int | None = None, **facts: Any) -> Reading:
    """What the curve says, in the words of samples/readings.json, whose gaps `facts` fill."""
    words = files.worded(_TEXTS[id], variant, {"step": step, **facts})
    return Reading(id, words.get("severity", "problem"), words["title"], words["evidence"], words["advice"], step)


def _not_a_number(history: Any) -> list[Reading]:
    for name, pairs in (("training", history.losses), ("validation", history.val_losses)):
        if lost := [step for step, value in pairs if not math.isfinite(value)]:
            if len(lost) == len(pairs) and not any(_norm(p) for p in history.points if p.loss is not None):
                return [_reading("nothing-trained", "masked", step=lost[0], seen=len(pairs))]
            norms = [_norm(p) for p in history.points if p.step in lost and getattr(p, "grad_norm", None) is not None]
            variant = "logged" if norms and all(map(math.isfinite, norms)) else ""
            return [_reading("nan", variant, step=lost[0], name=name, lost=len(lost), seen=len(pairs))]
    if lost := [p.step for p in history.points if p.loss == 0 and not math.isfinite(_norm(p))]:
        return [_reading("nan", "hidden", step=lost[0], lost=len(lost), seen=len(history.losses))]
    return []


def _norm(point: Any) -> float:
    """The gradient's norm at a point; 1, as good as any, where nobody noted it."""
    norm = getattr(point, "grad_norm", None)
    return 1.0 if norm is None else norm


def _skipped(history: Any, config: Any) -> list[Reading]:
    counted = [(p.step, p.applied) for p in history.points if getattr(p, "applied", None) is not None]
    steps, applied = counted[-1] if counted else (0, 0)
    if applied >= steps:
        return []
    variant = "many" if applied == 0 or steps - applied > max(10, 0.1 * steps) else ""
    first = next((step for step, count in counted if count < step), None)
    rate = _now(config, "learning_rate")
    return [_reading("skipped", variant, step=first, steps=steps, applied=applied, rate=rate)]


def _shape(train: Pairs, config: Any) -> list[Reading]:
    """Readings of the training loss alone."""
    values = [value for _, value in train]
    if values and max(map(abs, values)) < 1e-6:
        return [_reading("nothing-trained", step=train[0][0], seen=len(values))]
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
    return _reading("diverging", step=step, low=low, end=end, rate=rate, warmup=warmup)


def _flat(values: Sequence[float], config: Any) -> Reading | None:
    """First and last third are the same within what chance does to them; a loss that halved has fallen."""
    begin, _, end, chance = _thirds(values)
    if begin - end > max(0.05 * begin, min(chance, 0.5 * begin)):
        return None
    return _reading("flat", begin=begin, end=end, chance=chance, rate=_now(config, "learning_rate"))


def _levelled(train: Pairs) -> Reading | None:
    """It fell, and then stopped falling while still high."""
    values = [value for _, value in train]
    start = max(median(values[:3]), values[0])
    _, middle, end, chance = _thirds(values)
    if len(values) < 12 or end < 0.35 * start or middle - end > max(0.07 * start, chance):
        return None
    return _reading("levelled", step=train[len(train) // 2][0], start=start, end=end)


def _spikes(train: Pairs, config: Any) -> Reading | None:
    values = [value for _, value in train]
    least = max(6 * _noise(values), 0.25 * median(values[:3]), 0.1)
    found = []
    for i in range(2, len(values) - 2):
        around = (median(values[max(0, i - 3) : i]), median(values[i + 1 : i + 4]))
        if all(values[i] - m > max(least, 0.5 * m) for m in around):
            found.append(train[i])
    if not found:
        return None
    steps = [step for step, _ in found]
    variant = "many" if len(steps) > max(1, len(values) // 30) else ""
    where = ", ".join(map(str, steps[:5])) + (" and more" if len(steps) > 5 else "")
    highest, norm = max(value for _, value in found), _now(config, "max_grad_norm")
    return _reading("spikes", variant, step=steps[0], highest=highest, where=where, norm=norm)


def _validation(train: Pairs, val: Pairs, config: Any) -> list[Reading]:
    """Readings of the validation loss beside the training loss."""
    if not val or len(train) < 2:
        return []
    best_step, best = min(val, key=lambda pair: pair[1])
    last_step, last = val[-1]
    at_best = median([value for step, value in train if step <= best_step][-3:] or [train[0][1]])
    end = median([value for _, value in train][-3:])
    if last_step > best_step and last > 1.05 * best + 0.01 and end <= 1.05 * at_best:
        setting = "max_steps" if config is not None and config.max_steps > 0 else "num_train_epochs"
        length = _now(config, setting, named=True)
        about: dict[str, Any] = {"best": best, "last": last, "at_best": at_best, "end": end, "length": length}
        return [_reading("overfitting", step=best_step, **about)]
    if last > 2 * end + 0.3 and len(train) >= _ENOUGH_POINTS:
        return [_reading("gap", step=last_step, end=end, last=last)]
    return []


def _healthy(train: Pairs, val: Pairs) -> Reading:
    """Nothing is wrong, or there is too little to say so."""
    if len(train) < _ENOUGH_POINTS:
        return _reading("too-early", seen=len(train), least=_ENOUGH_POINTS)
    seen = f", and validation ends at {val[-1][1]:.3g}" if val else "; validation was not measured"
    return _reading("healthy", start=train[0][1], end=median([value for _, value in train][-5:]), seen=seen)


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
