"""The brief's claims on memory beside what the estimate computes, and beside public measurements with their sources."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ftkit import memory, preflight
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.lessons.measured import Measurement
from ftkit.memory import GIB, NF4_BITS, NF4_DOUBLE_BITS, MemoryEstimate, ModelShape, estimate

BRIEF = "the brief that this kit follows, section 10"

LLAMA_FACTORY = "https://github.com/hiyouga/LLaMA-Factory, README, hardware requirement (estimated)"

ACCELERATE = "accelerate.commands.estimate, accelerate 1.15.0: total size, and 8 bytes a parameter for training with Adam in bf16"

_METHODS = ("full", "lora", "qlora")

_GB = 1e9

_GIB = 1024**3


@dataclass(frozen=True)
class SizeClass:
    """One row of the brief's table: GiB as it gives them, and the parameters that it means."""

    name: str
    low_billions: float
    high_billions: float
    full_gib: float | None
    lora_gib: float
    qlora_gib: float
    hardware: str
    example: str

    def gib(self, method: str) -> float | None:
        """What the table says for a method; None where it gives no number."""
        return {"full": self.full_gib, "lora": self.lora_gib, "qlora": self.qlora_gib}[_known(method)]


TABLE = (
    SizeClass("1B to 3B", 0.0, 4.5, 24, 8, 4, "RTX 3060 12 GB / free Colab T4", "meta-llama/Llama-3.2-3B"),
    SizeClass("7B to 8B", 4.5, 10.5, 60, 16, 8, "RTX 3090 24 GB / RTX 4090", "meta-llama/Llama-3.1-8B"),
    SizeClass("13B", 10.5, 40, 120, 32, 14, "RTX 3090 24 GB + gradient checkpointing", "meta-llama/Llama-2-13b-hf"),
    SizeClass("70B", 40, 1e9, None, 160, 40, "A100 80 GB x 1 (QLoRA)", "NousResearch/Llama-2-70b-hf"),
)


def brief(parameters: int, method: str) -> float | None:
    """The brief's number for a model of this size, in GiB as it writes GB."""
    return next(row for row in TABLE if row.low_billions <= parameters / 1e9 < row.high_billions).gib(method)


_FACTORY_COLUMNS = (  # billions, from and to: GB for full fine-tuning in pure bf16, LoRA, 4-bit QLoRA
    (4.5, 10.5, {"full": 60, "lora": 16, "qlora": 6}),
    (10.5, 22, {"full": 120, "lora": 32, "qlora": 12}),
    (22, 50, {"full": 300, "lora": 64, "qlora": 24}),
    (50, 1e9, {"full": 600, "lora": 160, "qlora": 48}),
)


def llama_factory(parameters: int, method: str) -> float:
    """LLaMA-Factory's number: its column of 7, 14, 30 or 70 billion, below that its formula for x billion; GB in GiB."""
    _known(method)
    billions = parameters / 1e9
    for low, high, column in _FACTORY_COLUMNS:
        if low <= billions < high:
            return column[method] * _GB / _GIB
    return {"full": 8.0, "lora": 2.0, "qlora": 0.5}[method] * billions * _GB / _GIB


def accelerate(parameters: int, method: str) -> float:
    """What `accelerate estimate-memory` prints: the size in the base's format, or training with Adam for full fine-tuning.

    It knows no adapters: for LoRA a reader finds the 16-bit size, for QLoRA the 4-bit size.
    """
    bytes_each = {"full": 8.0, "lora": 2.0, "qlora": 0.5}[_known(method)]
    return bytes_each * parameters / _GIB


def _known(method: str) -> str:
    if method not in _METHODS:
        raise ConfigError(f"method={method!r} is not one of {', '.join(_METHODS)}.")
    return method


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
    nearest: Measurement | None

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
    config: TrainConfig, points: Sequence[Measurement] = (), models: Sequence[str] | None = None
) -> HardwareTable:
    """Recompute the brief's table.

    Args:
        config: the settings, with `max_length` and micro-batch; the method is set for each column.
        points: public measurements to look through.
        models: a model for each size class, by name; by default a Llama of that size.
    """
    names = models or [row.example for row in TABLE]
    cells = []
    for size, name in zip(TABLE, names, strict=True):
        shape = memory.find(name)
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


def _nearest(size: SizeClass, method: str, config: TrainConfig, points: Sequence[Measurement]) -> Measurement | None:
    alike = [
        p
        for p in points
        if p.way.method == method and size.low_billions <= p.shape.parameters / 1e9 < size.high_billions
    ]
    tokens = config.per_device_train_batch_size * config.max_length
    return min(alike, key=lambda p: (abs(p.way.tokens / tokens - 1), p.id), default=None)


def _told(point: Measurement | None) -> str:
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


def full_state_bytes(parameters: int, *, mixed: bool) -> float:
    """Bytes of gradients and Adam's states in full fine-tuning: 2 + 8 in mixed precision, 2 + 4 in pure bf16."""
    return (10.0 if mixed else 6.0) * parameters


def memory_claims(points: Sequence[Measurement] = ()) -> Claims:
    """Recompute each of the brief's sentences on memory."""
    small, large, huge = (
        memory.find(name)
        for name in ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "NousResearch/Llama-2-70b-hf")
    )
    mixed, pure = (full_state_bytes(small.parameters, mixed=flag) / 1e9 for flag in (True, False))
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


SOURCE = "the brief, section 8"


@dataclass(frozen=True)
class UsualRange:
    """One row of the brief's table, unchanged: the typical range, and its advice."""

    setting: str
    low: float
    high: float
    advice: str


USUAL_RANGES = (
    UsualRange("learning_rate", 1e-4, 3e-4, "higher than full fine-tuning; cosine decay recommended"),
    UsualRange("effective_batch_size", 8, 32, "gradient accumulation reaches it without more memory"),
    UsualRange("num_train_epochs", 1, 5, "overfits with more on small datasets; below 3 is usually optimal"),
    UsualRange("max_length", 2048, 8192, "higher needs more memory; start with 4096"),
    UsualRange("lora_r", 8, 64, "higher has more capacity; for complex tasks try 32 to 64"),
    UsualRange("warmup_steps", 50, 100, "prevents loss spikes at the start of training"),
)


@dataclass(frozen=True)
class Usual:
    """The claims beside the kit's own ranges and defaults, and what was measured of them; shows itself as a table."""

    measured: Mapping[str, str]

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Settings that nothing was measured of."""
        return tuple(claim.setting for claim in USUAL_RANGES if claim.setting not in self.measured)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Setting, claim with its advice, the kit's usual range, its default, and what was measured."""
        return [
            (
                claim.setting,
                f"{_span(claim.low, claim.high)}: {claim.advice}",
                kits_range(claim.setting),
                f"{_default(claim.setting):g}",
                self.measured.get(claim.setting, "not measured here"),
            )
            for claim in USUAL_RANGES
        ]

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: the brief {claim}; this kit {usual}, default {default}; {seen}"
            for name, claim, usual, default, seen in self.rows()
        )

    def _repr_html_(self) -> str:
        head = ("setting", SOURCE, "usual in this kit", "default", "measured")
        titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        left = ' style="text-align:left"'
        lines = "".join(
            "<tr>" + "".join(f"<td{left}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        return f"<table><tr>{titles}</tr>{lines}</table>"


def settings_table(measured: Mapping[str, str] | None = None) -> Usual:
    """The table, with one sentence for each setting that was measured.

    Raises:
        ConfigError: a setting that the table does not have.
    """
    known = [claim.setting for claim in USUAL_RANGES]
    if strange := [name for name in measured or {} if name not in known]:
        raise ConfigError(f"{', '.join(strange)}: not in the table. It has: {', '.join(known)}.")
    return Usual(dict(measured or {}))


def kits_range(setting: str) -> str:
    """What `TrainConfig` calls usual; for the effective batch size, what the check before a run wants."""
    usual = next((spec.metadata["typical"] for spec in fields(TrainConfig) if spec.name == setting), None)
    return _span(*usual) if usual else preflight.SETTINGS_CHECKS["effective-batch"]


def _default(setting: str) -> float:
    return float(getattr(TrainConfig(), setting))


def _span(low: float, high: float) -> str:
    return f"{low:g} to {high:g}"
