"""What to change first when a run does not fit: settings in the order of what they cost, with the gain of each in GiB."""

import html
from collections.abc import Callable
from dataclasses import dataclass

from ftkit.config import TrainConfig
from ftkit.estimates import MemoryEstimate, estimate
from ftkit.gpus import NO, YES, verdict
from ftkit.shapes import ModelShape

_WORTH_GIB = 0.005  # a smaller gain is not listed
FREE, TIME, QUALITY = "costs nothing", "costs time", "costs quality"


@dataclass(frozen=True)
class Saving:
    """One change, made after those above it.

    Attributes:
        change: the setting, as one would write it.
        gain_gib: what the likely peak falls by.
        estimate: what the run needs after it.
        cost: what it costs.
        config: the settings with this change and those above it.
    """

    change: str
    gain_gib: float
    estimate: MemoryEstimate
    cost: str
    config: TrainConfig


@dataclass(frozen=True)
class Savings:
    """Changes in order; shows itself as a table."""

    start: MemoryEstimate
    rows: tuple[Saving, ...]
    room_gib: float | None = None

    @property
    def enough(self) -> int | None:
        """How many changes, from the top, until it surely fits into `room_gib`; None where all are too few."""
        if self.room_gib is None:
            return None
        ends = [self.start, *(row.estimate for row in self.rows)]
        return next((count for count, end in enumerate(ends) if verdict(end, self.room_gib) == YES), None)

    def _conclusion(self) -> str:
        if self.room_gib is None:
            return f"likely {self.start.likely_gib:.1f} GiB before any of them"
        if self.enough is None:
            return f"All of them are too few for {self.room_gib:.1f} GiB: take a smaller model or a larger card."
        return f"It fits into {self.room_gib:.1f} GiB " + (
            "as it is." if self.enough == 0 else f"after the first {self.enough}."
        )

    def _lines(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                row.change,
                f"{row.gain_gib:.2f}",
                f"{row.estimate.likely_gib:.2f}",
                f"{row.estimate.high_gib:.2f}",
                row.cost,
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        lines = [
            f"{change:62} -{gain:>6} GiB  likely {likely:>7}  high {high:>7}  {cost}"
            for change, gain, likely, high, cost in self._lines()
        ]
        return "\n".join([self.start.about, *lines, self._conclusion()])

    def _repr_html_(self) -> str:
        head = ("change, after those above", "gain, GiB", "then likely, GiB", "high, GiB", "cost")
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in self._lines()
        )
        return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table><p>{html.escape(self._conclusion())}</p>"


@dataclass(frozen=True)
class _Change:
    cost: str
    why: str
    apply: Callable[[TrainConfig], tuple[str, TrainConfig] | None]


def savings(
    shape: ModelShape,
    config: TrainConfig,
    *,
    room_gib: float | None = None,
    backend: str | None = None,
    device: str = "cuda",
    longest: int | None = None,
    loss_path: str | None = None,
) -> Savings:
    """List what can be changed, cheapest first and then by gain, each on top of the ones before.

    Args:
        shape: the model.
        config: the settings that do not fit.
        room_gib: how much memory there is; the answer then says how many changes are enough.
        backend: as for `estimate`.
        device: as for `estimate`.
        longest: as for `estimate`.
        loss_path: as for `estimate`.
    """

    def needed(settings: TrainConfig) -> MemoryEstimate:
        return estimate(shape, settings, device=device, longest=longest, loss_path=loss_path)

    if backend is not None:
        config = config.replace(backend=backend)
    start = now = needed(config)
    rows: list[Saving] = []
    left = [change for change in _CHANGES if device == "cuda" or change is not _UNSLOTH]
    while left:
        tried = [(found, change) for change in left if (found := change.apply(config))]
        gains = [
            (now.likely_gib - needed(changed).likely_gib, text, changed, change) for (text, changed), change in tried
        ]
        worthy = [gain for gain in gains if gain[0] > _WORTH_GIB]
        if not worthy:
            break
        cheapest = min(_ORDER.index(gain[3].cost) for gain in worthy)
        gain, text, config, change = max((g for g in worthy if _ORDER.index(g[3].cost) == cheapest), key=lambda g: g[0])
        now = needed(config)
        rows.append(Saving(text, gain, now, f"{change.cost}: {change.why}", config))
        left.remove(change)
    return Savings(start, tuple(rows), room_gib)


def advice(estimated: MemoryEstimate, room_gib: float) -> str:
    """One sentence: whether it fits, and what to do if it does not."""
    found = verdict(estimated, room_gib)
    if found == YES:
        return f"It fits: {estimated.high_gib:.1f} of {room_gib:.1f} GiB at the high end."
    if found == NO:
        return f"It does not fit: likely {estimated.likely_gib:.1f} of {room_gib:.1f} GiB. Most is {estimated.dominant}; `savings` lists what to change."
    return f"It is tight: likely {estimated.likely_gib:.1f}, at the high end {estimated.high_gib:.1f} of {room_gib:.1f} GiB. Try a step on the longest batch first."


def _to_unsloth(config: TrainConfig) -> tuple[str, TrainConfig] | None:
    if config.backend != "transformers" and (config.bnb_4bit_use_double_quant or not config.load_in_4bit):
        return None
    changes = {"backend": "unsloth", "bnb_4bit_use_double_quant": True}
    return "backend='unsloth'", config.replace(**changes)


def _setting(name: str, value: object) -> Callable[[TrainConfig], tuple[str, TrainConfig] | None]:
    def change(config: TrainConfig) -> tuple[str, TrainConfig] | None:
        return None if getattr(config, name) == value else (f"{name}={value!r}", config.replace(**{name: value}))

    return change


def _one_at_a_time(config: TrainConfig) -> tuple[str, TrainConfig] | None:
    batch = config.effective_batch_size
    if config.per_device_train_batch_size == 1 or batch > 512:
        return None
    return (
        f"per_device_train_batch_size=1, gradient_accumulation_steps={batch}",
        config.replace(per_device_train_batch_size=1, gradient_accumulation_steps=batch),
    )


def _halve(name: str, floor: int) -> Callable[[TrainConfig], tuple[str, TrainConfig] | None]:
    def change(config: TrainConfig) -> tuple[str, TrainConfig] | None:
        half = getattr(config, name) // 2
        return None if half < floor else (f"{name}={half}", config.replace(**{name: half}))

    return change


_ORDER = (FREE, TIME, QUALITY)
_UNSLOTH = _Change(FREE, "layers' inputs wait in the computer's RAM, the loss is computed in parts", _to_unsloth)
_CHANGES = (
    _UNSLOTH,
    _Change(FREE, "optimiser states in 8 bits", _setting("optim", "adamw_8bit")),
    _Change(FREE, "the scales of the 4-bit weights in 8 bits", _setting("bnb_4bit_use_double_quant", True)),
    _Change(TIME, "about a third more, each layer is computed twice", _setting("gradient_checkpointing", True)),
    _Change(TIME, "smaller steps on the GPU, the same effective batch size", _one_at_a_time),
    _Change(QUALITY, "a little, weights are rounded to 4 bits", _setting("load_in_4bit", True)),
    _Change(QUALITY, "longer examples are cut", _halve("max_length", 128)),
    _Change(QUALITY, "a narrower detour", _halve("lora_r", 4)),
)
