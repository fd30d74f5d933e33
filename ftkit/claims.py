"""The brief's claims on memory beside what the estimate computes, and beside public measurements with their sources."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from ftkit import rules_of_thumb, shapes
from ftkit.config import TrainConfig
from ftkit.estimates import MemoryEstimate, estimate
from ftkit.footprint import GIB, NF4_BITS, NF4_DOUBLE_BITS
from ftkit.measured import Point
from ftkit.rules_of_thumb import SizeClass
from ftkit.shapes import ModelShape

LEAN_TOKENS = 512
_ROUNDED = 0.97  # a number that is right when rounded is not called wrong
_NAMES = {"full": "full", "lora": "LoRA, 16-bit", "qlora": "QLoRA, 4-bit"}


@dataclass(frozen=True)
class Cell:
    """One number of the brief's table, recomputed.

    Attributes:
        size: the table's size class.
        method: "full", "lora" or "qlora".
        says_gib: the brief's number; None where it gives none.
        lean: the smallest setting: Unsloth, one row of 512 tokens.
        usual: the settings that were asked for.
        nearest: the public run of this class and method whose tokens are nearest, or None.
    """

    size: SizeClass
    method: str
    says_gib: float | None
    lean: MemoryEstimate
    usual: MemoryEstimate
    nearest: Point | None

    @property
    def verdict(self) -> str:
        """What the brief's number is good for."""
        if self.says_gib is None:
            return "no number given"
        if self.says_gib < _ROUNDED * self.lean.likely_gib:
            return "too low, even for the leanest run"
        if self.says_gib < _ROUNDED * self.usual.likely_gib:
            return "a best case: short rows"
        return "enough" if self.says_gib >= self.usual.high_gib else "likely enough, not surely"


@dataclass(frozen=True)
class HardwareTable:
    """The brief's table, computed; shows itself as a table."""

    cells: tuple[Cell, ...]
    about: str

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        """The cell of a size class and a method."""
        return next(cell for cell in self.cells if (cell.size.name, cell.method) == key)

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = []
        for cell in self.cells:
            says = "-" if cell.says_gib is None else f"{cell.says_gib:g}"
            usual = f"{cell.usual.likely_gib:.1f} (to {cell.usual.high_gib:.1f})"
            lines.append(
                (
                    cell.size.name,
                    _NAMES[cell.method],
                    says,
                    f"{cell.lean.likely_gib:.1f}",
                    usual,
                    cell.verdict,
                    _told(cell.nearest),
                )
            )
        return lines

    def __str__(self) -> str:
        return "\n".join([self.about, *(" · ".join(line) for line in self._lines())])

    def _repr_html_(self) -> str:
        head = (
            "size",
            "method",
            "the brief says",
            f"lean, {LEAN_TOKENS} tokens",
            "these settings",
            "so the brief's number is",
            "nearest public measurement",
        )
        return _html(head, self._lines(), self.about)


def hardware_table(
    config: TrainConfig, points: Sequence[Point] = (), models: Sequence[str] | None = None
) -> HardwareTable:
    """Recompute the brief's table.

    Args:
        config: the settings, with `max_length` and micro-batch; the method is set for each column.
        points: public measurements to look through.
        models: a model for each size class, by name; by default a Llama of that size.
    """
    names = models or [row.example for row in rules_of_thumb.TABLE]
    cells = []
    for size, name in zip(rules_of_thumb.TABLE, names, strict=True):
        shape = shapes.find(name)
        for method in _NAMES:
            lean, usual = (_run(shape, each, method) for each in (_lean(config), config))
            cells.append(Cell(size, method, size.gib(method), lean, usual, _nearest(size, method, config, points)))
    tokens = config.per_device_train_batch_size * config.max_length
    return HardwareTable(
        tuple(cells),
        f"GiB. These settings: {tokens:,} tokens in memory, r={config.lora_r}, {config.backend}; models: {', '.join(names)}",
    )


def _lean(config: TrainConfig) -> TrainConfig:
    return config.replace(
        backend="unsloth", max_length=LEAN_TOKENS, per_device_train_batch_size=1, gradient_checkpointing=True
    )


def _run(shape: ModelShape, config: TrainConfig, method: str) -> MemoryEstimate:
    return estimate(shape, config.replace(optim="adamw_torch") if method == "full" else config, method=method)


def _nearest(size: SizeClass, method: str, config: TrainConfig, points: Sequence[Point]) -> Point | None:
    alike = [
        p
        for p in points
        if p.way.method == method and size.low_billions <= p.shape.parameters / 1e9 < size.high_billions
    ]
    tokens = config.per_device_train_batch_size * config.max_length
    return min(alike, key=lambda p: (abs(p.way.tokens / tokens - 1), p.id), default=None)


def _told(point: Point | None) -> str:
    if point is None:
        return "none"
    saver = "" if point.way.checkpointing else ", no checkpointing"
    return f"{point.allocated_gib:.1f}: {point.model}, {point.way.tokens:,} tokens{saver} ({point.source})"


@dataclass(frozen=True)
class Claim:
    """A sentence of the brief, its number, and ours."""

    claim: str
    says: str
    computed: str
    verdict: str


@dataclass(frozen=True)
class Claims:
    """The brief's sentences on memory; shows itself as a table."""

    rows: tuple[Claim, ...]

    def _lines(self) -> list[tuple[str, ...]]:
        return [(row.claim, row.says, row.computed, row.verdict) for row in self.rows]

    def __str__(self) -> str:
        return "\n".join(" · ".join(line) for line in self._lines())

    def _repr_html_(self) -> str:
        return _html(("the brief", "says", "computed", "so it is"), self._lines(), "The brief's claims on memory")


def state_bytes(parameters: int, *, mixed: bool) -> float:
    """Bytes of gradients and Adam's states in full fine-tuning: 2 + 8 in mixed precision, 2 + 4 in pure bf16."""
    return (10.0 if mixed else 6.0) * parameters


def memory_claims(points: Sequence[Point] = ()) -> Claims:
    """Recompute each of the brief's sentences on memory."""
    small, large, huge = (
        shapes.find(name)
        for name in ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "NousResearch/Llama-2-70b-hf")
    )
    mixed, pure = (state_bytes(small.parameters, mixed=flag) / 1e9 for flag in (True, False))
    plain = TrainConfig(per_device_train_batch_size=1, backend="transformers")
    full = estimate(large, plain.replace(optim="adamw_torch"), method="full")
    lora, qlora = (estimate(large, plain, method=method) for method in ("lora", "qlora"))
    weights = 16 * large.parameters / (NF4_DOUBLE_BITS * large.matrix_parameters + 16 * large.other_parameters)
    lean, usual = (
        estimate(huge, _lean(plain)),
        estimate(huge, plain.replace(max_length=4096, per_device_train_batch_size=4)),
    )
    seen = [p.allocated_gib for p in points if p.model == huge.name and p.way.method == "qlora"]
    told = f"; measured {min(seen):.0f} to {max(seen):.0f}" if seen else ""
    return Claims(
        (
            Claim(
                "gradients and optimiser states of a 7B",
                "about 28 GB",
                f"{mixed:.0f} GB in mixed precision, {pure:.0f} in pure bf16",
                "too low",
            ),
            Claim(
                "7B to 8B, full fine-tuning",
                "about 60 GB",
                f"{full.likely_gib:.0f} GiB for an 8B in pure bf16, to {full.high_gib:.0f} in the process",
                "too low",
            ),
            Claim(
                "QLoRA reduces memory",
                "4 to 8 times",
                f"weights {weights:.1f} times, the whole run {lora.likely_gib / qlora.likely_gib:.1f} times against 16-bit LoRA",
                "true of quantised matrices alone",
            ),
            Claim(
                "QLoRA of a 70B",
                "about 40 GB",
                f"{lean.likely_gib:.0f} GiB lean, {usual.likely_gib:.0f} (to {usual.high_gib:.0f}) at 16,384 tokens{told}",
                "a best case, no room for length",
            ),
            Claim(
                "16-bit LoRA of a 7B to 8B",
                "about 16 GB",
                f"weights alone {2 * large.parameters / GIB:.0f} GiB, the run {lora.likely_gib:.0f}",
                "a best case",
            ),
            Claim(
                "double quantisation saves",
                "about 0.4 bits",
                f"{NF4_BITS - NF4_DOUBLE_BITS:.3f} bits a parameter",
                "right when rounded",
            ),
        )
    )


def _html(head: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{rows}</table>"
