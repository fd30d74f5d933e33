"""Will it fit, and what to change first if not: common cards with the memory that torch really sees, and savings.

Knows no model's insides: it holds estimates against rooms, and asks for new ones with other settings.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit import files, tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.memory.estimates import CONTEXT_GIB, MemoryEstimate, estimate
from ftkit.memory.shapes import ModelShape

YES, TIGHT, NO = "fits", "tight", "does not fit"


@dataclass(frozen=True)
class GPU:
    """A card: its memory as sold, as torch sees it, whether it computes in bf16, and where the number comes from."""

    name: str
    nominal_gb: int
    usable_gib: float
    bf16: bool
    source: str


@functools.cache
def gpu_table() -> tuple[GPU, ...]:
    """The cards that come with the package, smallest first."""
    return tuple(sorted((GPU(**row) for row in files.sample("gpus")["gpus"]), key=lambda card: card.usable_gib))


def gpu(name: str) -> GPU:
    """A card by its name, such as "T4" or "A100 80 GB"; a ConfigError lists the known ones."""
    cards = {card.name.lower(): card for card in gpu_table()}
    if name.strip().lower() not in cards:
        raise ConfigError(f"{name!r} is not in the table. There are: {', '.join(card.name for card in gpu_table())}.")
    return cards[name.strip().lower()]


def verdict(estimated: MemoryEstimate, room_gib: float) -> str:
    """Whether an estimate fits into so much memory: "fits", "tight" or "does not fit"."""
    if estimated.high_gib - estimated.elastic_gib <= room_gib:
        return YES
    context = CONTEXT_GIB if estimated.device == "cuda" else 0.0
    return TIGHT if estimated.likely_gib + context <= room_gib else NO


def advice(estimated: MemoryEstimate, room_gib: float) -> str:
    """One sentence: whether it fits, and what to do if it does not."""
    found = verdict(estimated, room_gib)
    if found == YES:
        return f"It fits: {estimated.high_gib:.1f} of {room_gib:.1f} GiB at the high end."
    likely, high = f"likely {estimated.likely_gib:.1f}", f"at the high end {estimated.high_gib:.1f}"
    if found == NO:
        most = f"Most is {estimated.dominant}; `savings` lists what to change."
        return f"It does not fit: {likely} of {room_gib:.1f} GiB. {most}"
    return f"It is tight: {likely}, {high} of {room_gib:.1f} GiB. Try a step on the longest batch first."


@dataclass(frozen=True)
class Fit:
    """One card's answer; `spare_gib` is what the high end leaves over, before what is taken only where it is free."""

    gpu: GPU
    verdict: str
    spare_gib: float


@tables.shown
@dataclass(frozen=True)
class Fits:
    """An estimate against each card; shows itself as a table."""

    estimate: MemoryEstimate
    rows: tuple[Fit, ...]

    def __getitem__(self, name: str) -> str:
        """The verdict for one card, by its name."""
        return next(row.verdict for row in self.rows if row.gpu == gpu(name))

    def _parts(self) -> list[tables.Table]:
        needed = self.estimate
        caption = f"{needed.about}: likely {needed.likely_gib:.1f} GiB, high {needed.high_gib:.1f} GiB"
        head = ("GPU", "usable, GiB", "verdict", "spare at the high end, GiB")
        rows = [(row.gpu.name, f"{row.gpu.usable_gib:.1f}", row.verdict, f"{row.spare_gib:+.1f}") for row in self.rows]
        return [tables.Table(head, rows, caption=caption)]


def fits(estimated: MemoryEstimate, gpus: Sequence[GPU] | None = None) -> Fits:
    """Hold an estimate, which must be for a GPU, against cards.

    A card on which even the high end fits says "fits"; one on which the likely peak fits and the high end does not says
    "tight": try it, with a step on the longest batch first.
    """
    if estimated.device != "cuda":
        raise ConfigError("This estimate is for a CPU's process. Estimate with device='cuda' to hold it against GPUs.")
    surely = estimated.high_gib - estimated.elastic_gib
    rows = [Fit(card, verdict(estimated, card.usable_gib), card.usable_gib - surely) for card in (gpus or gpu_table())]
    return Fits(estimated, tuple(rows))


@dataclass(frozen=True)
class Saving:
    """One change, made after those above it."""

    change: str  # the setting, as one would write it
    gain_gib: float  # what the likely peak falls by
    estimate: MemoryEstimate  # what the run needs after it
    cost: str
    config: TrainConfig  # the settings with this change and those above it


@tables.shown
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

    def _parts(self) -> list[tables.Table | str]:
        if self.room_gib is None:
            said = f"likely {self.start.likely_gib:.1f} GiB before any of them"
        elif self.enough is None:
            said = f"All of them are too few for {self.room_gib:.1f} GiB: take a smaller model or a larger card."
        else:
            after = f"after the first {self.enough}" if self.enough else "as it is"
            said = f"It fits into {self.room_gib:.1f} GiB {after}."
        rows = []
        for row in self.rows:
            sizes = (row.gain_gib, row.estimate.likely_gib, row.estimate.high_gib)
            rows.append((row.change, *(f"{gib:.2f}" for gib in sizes), row.cost))
        head = ("change, after those above", "gain, GiB", "then likely, GiB", "high, GiB", "cost")
        return [tables.Table(head, rows, caption=self.start.about), said]


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

    With `room_gib`, how much memory there is, the answer says how many changes are enough. The others are `estimate`'s.
    """
    if backend is not None:
        config = config.replace(backend=backend)
    how: dict[str, Any] = {"device": device, "longest": longest, "loss_path": loss_path}
    start = now = estimate(shape, config, **how)
    rows: list[Saving] = []
    left = [change for change in _CHANGES if device == "cuda" or change.settings is not _to_unsloth]
    while True:
        options = []
        for place, change in enumerate(left):
            new = {name: value for name, value in change.settings(config).items() if getattr(config, name) != value}
            changed = config.replace(**new)
            then = estimate(shape, changed, **how)
            gain = now.likely_gib - then.likely_gib
            if gain > _WORTH_GIB:
                text = ", ".join(f"{name}={value!r}" for name, value in new.items())
                saving = Saving(text, gain, then, f"{change.cost}: {change.why}", changed)
                options.append((_COSTS.index(change.cost), -gain, place, saving))
        if not options:
            return Savings(start, tuple(rows), room_gib)
        _, _, place, best = min(options, key=lambda option: option[:3])
        rows.append(best)
        config, now = best.config, best.estimate
        del left[place]


_WORTH_GIB = 0.005  # a smaller gain is not listed
_COSTS = FREE, TIME, QUALITY = "costs nothing", "costs time", "costs quality"


@dataclass(frozen=True)
class _Change:
    """What to set, given the settings so far; what already stands so is no change."""

    cost: str
    why: str
    settings: Callable[[TrainConfig], dict[str, Any]]


def _to_unsloth(config: TrainConfig) -> dict[str, Any]:
    if config.backend != "transformers" and (config.bnb_4bit_use_double_quant or not config.load_in_4bit):
        return {}
    return {"backend": "unsloth", "bnb_4bit_use_double_quant": True}


def _one_at_a_time(config: TrainConfig) -> dict[str, Any]:
    batch = config.effective_batch_size
    if config.per_device_train_batch_size == 1 or batch > 512:
        return {}
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch}


def _halve(name: str, floor: int) -> Callable[[TrainConfig], dict[str, Any]]:
    def settings(config: TrainConfig) -> dict[str, Any]:
        half = getattr(config, name) // 2
        return {name: half} if half >= floor else {}

    return settings


_CHANGES = (
    _Change(
        FREE,
        "its kernels keep less, layers' inputs wait in the computer's RAM, the loss is computed in parts",
        _to_unsloth,
    ),
    _Change(FREE, "optimiser states in 8 bits", lambda _: {"optim": "adamw_8bit"}),
    _Change(FREE, "the scales of the 4-bit weights in 8 bits", lambda _: {"bnb_4bit_use_double_quant": True}),
    _Change(TIME, "about a third more, each layer is computed twice", lambda _: {"gradient_checkpointing": True}),
    _Change(TIME, "smaller steps on the GPU, the same effective batch size", _one_at_a_time),
    _Change(QUALITY, "a little, weights are rounded to 4 bits", lambda _: {"load_in_4bit": True}),
    _Change(QUALITY, "longer examples are cut", _halve("max_length", 128)),
    _Change(QUALITY, "a narrower detour", _halve("lora_r", 4)),
)
