"""Common GPUs with the memory that torch really sees, and whether an estimate fits on each."""

import functools
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

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
    text = resources.files("ftkit").joinpath("samples/gpus.json").read_text(encoding="utf-8")
    cards = [GPU(**row) for row in json.loads(text)["gpus"]]
    return tuple(sorted(cards, key=lambda card: card.usable_gib))


def gpu(name: str) -> GPU:
    """A card by its name, such as "T4" or "A100 80 GB".

    Raises:
        ConfigError: unknown; lists the known ones.
    """
    found = [card for card in gpu_table() if card.name.lower() == name.strip().lower()]
    if not found:
        raise ConfigError(f"{name!r} is not in the table. There are: {', '.join(card.name for card in gpu_table())}.")
    return found[0]


@dataclass(frozen=True)
class Fit:
    """One card's answer; `spare_gib` is what the high end of the estimate leaves over, before what is taken only where it is free."""

    gpu: GPU
    verdict: str
    spare_gib: float


@dataclass(frozen=True)
class Fits:
    """An estimate against each card; shows itself as a table."""

    estimate: MemoryEstimate
    rows: tuple[Fit, ...]

    @property
    def smallest(self) -> GPU | None:
        """The smallest card on which it surely fits, or None."""
        return next((row.gpu for row in self.rows if row.verdict == YES), None)

    def __getitem__(self, name: str) -> str:
        """The verdict for one card, by its name."""
        return next(row.verdict for row in self.rows if row.gpu == gpu(name))

    def _lines(self) -> list[tuple[str, str, str, str]]:
        return [(row.gpu.name, f"{row.gpu.usable_gib:.1f}", row.verdict, f"{row.spare_gib:+.1f}") for row in self.rows]

    def __str__(self) -> str:
        e = self.estimate
        head = f"{e.about}\nlikely {e.likely_gib:.1f} GiB, high {e.high_gib:.1f} GiB"
        return "\n".join(
            [
                head,
                *(
                    f"{name:12} {usable:>6} GiB  {verdict:13} {spare:>7}"
                    for name, usable, verdict, spare in self._lines()
                ),
            ]
        )

    def _repr_html_(self) -> str:
        e = self.estimate
        head = ("GPU", "usable, GiB", "verdict", "spare at the high end, GiB")
        rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in self._lines())
        caption = html.escape(f"{e.about}: likely {e.likely_gib:.1f} GiB, high {e.high_gib:.1f} GiB")
        return f"<table><caption>{caption}</caption><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table>"


def fits(estimated: MemoryEstimate, gpus: Sequence[GPU] | None = None) -> Fits:
    """Hold an estimate against cards.

    A card on which even the high end fits says "fits"; one on which the likely peak fits and the high end does not says
    "tight": try it, with a step on the longest batch first.

    Raises:
        ConfigError: the estimate is for a CPU.
    """
    if estimated.device != "cuda":
        raise ConfigError("This estimate is for a CPU's process. Estimate with device='cuda' to hold it against GPUs.")
    return Fits(
        estimated,
        tuple(
            Fit(card, verdict(estimated, card.usable_gib), card.usable_gib - estimated.high_gib + estimated.elastic_gib)
            for card in (gpus or gpu_table())
        ),
    )


def verdict(estimated: MemoryEstimate, room_gib: float) -> str:
    """Whether an estimate fits into so much memory: "fits", "tight" or "does not fit"."""
    if estimated.high_gib - estimated.elastic_gib <= room_gib:
        return YES
    context = CONTEXT_GIB if estimated.device == "cuda" else 0.0
    return TIGHT if estimated.likely_gib + context <= room_gib else NO


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
