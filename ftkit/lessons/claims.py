"""Often repeated numbers on memory and settings, beside what is computed and what was measured.

The numbers stand in `samples/often_repeated.json` as they are told. One function a table; none of them judges by
opinion: a verdict follows from the estimate. Knows nothing of how the estimate comes about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ftkit import files, memory, preflight, tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError
from ftkit.hardware import GIB
from ftkit.lessons.measured import Measurement
from ftkit.memory import NF4_BITS, NF4_DOUBLE_BITS, MemoryEstimate, ModelShape, estimate

_LEAN_TOKENS = 512
_ROUNDED = 0.97  # a number that is right when rounded is not called wrong
_METHODS = {"full": "full", "lora": "LoRA, 16-bit", "qlora": "QLoRA, 4-bit"}


@dataclass(frozen=True)
class SizeClass:
    """One row of the hardware table: the parameters that it means, GiB by method, and a model of that size."""

    name: str
    low_billions: float
    high_billions: float
    says_gib: Mapping[str, float | None]
    example: str

    def holds(self, shape: ModelShape) -> bool:
        """Whether a model is of this size."""
        return self.low_billions <= shape.parameters / 1e9 < self.high_billions


@dataclass(frozen=True)
class Cell:
    """One number of the hardware table, recomputed.

    Attributes:
        method: "full", "lora" or "qlora".
        lean: the smallest setting: Unsloth, one row of 512 tokens, Adam in 8-bit.
        usual: the settings that were asked for; every weight is trained with Adam's averages in 16-bit.
        nearest: the public run of this class and method whose tokens are nearest, or None.
    """

    size: SizeClass
    method: str
    lean: MemoryEstimate
    usual: MemoryEstimate
    nearest: Measurement | None

    @property
    def says_gib(self) -> float | None:
        """The repeated number; None where the table gives none."""
        return self.size.says_gib[self.method]

    @property
    def verdict(self) -> str:
        """What the repeated number is good for."""
        if self.says_gib is None:
            return "no number given"
        if self.says_gib < _ROUNDED * self.lean.likely_gib:
            return "too low, even for the leanest run"
        if self.says_gib < _ROUNDED * self.usual.likely_gib:
            return "a best case: 8-bit Adam" if self.method == "full" else "a best case: short rows"
        return "enough" if self.says_gib >= self.usual.high_gib else "likely enough, not surely"


@tables.shown
@dataclass(frozen=True)
class HardwareTable:
    """The hardware table, computed; shows itself as a table."""

    cells: tuple[Cell, ...]
    about: str

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        """The cell of a size class and a method."""
        return next(cell for cell in self.cells if (cell.size.name, cell.method) == key)

    def _parts(self) -> list[tables.Table]:
        computed = (f"lean, {_LEAN_TOKENS} tokens", "these settings", "so the repeated number is")
        head = ("size", "method", "often repeated", *computed, "measured nearest to it")
        rows = []
        for cell in self.cells:
            says = "-" if cell.says_gib is None else f"{cell.says_gib:g}"
            usual = f"{cell.usual.likely_gib:.1f} (to {cell.usual.high_gib:.1f})"
            lean, seen, point = f"{cell.lean.likely_gib:.1f}", "none", cell.nearest
            if point is not None:
                saver = "" if point.setup.checkpointing else ", no checkpointing"
                model = point.model.rsplit("/", 1)[-1]
                seen = f"{point.allocated_gib:.1f}: {model}, {point.setup.tokens:,} tokens{saver}"
            rows.append((cell.size.name, _METHODS[cell.method], says, lean, usual, cell.verdict, seen))
        return [tables.Table(head, rows, caption=self.about)]


def hardware_table(config: TrainConfig, points: Sequence[Measurement] = ()) -> HardwareTable:
    """Recompute the often repeated table of memory by model size.

    Args:
        config: the settings, with `max_length` and micro-batch; the method is set for each column.
        points: public measurements to look through.
    """
    sizes = [SizeClass(**row) for row in files.sample("often_repeated")["hardware"]]
    tokens = config.per_device_train_batch_size * config.max_length
    cells = []
    for size in sizes:
        shape = memory.find(size.example)
        for method in _METHODS:
            settings = config.replace(optim="adamw_torch") if method == "full" else config
            lean, usual = (estimate(shape, each, method=method) for each in (_lean(settings), settings))
            alike = [point for point in points if point.setup.method == method and size.holds(point.shape)]
            nearest = min(alike, key=lambda p: (abs(p.setup.tokens / tokens - 1), p.id), default=None)
            cells.append(Cell(size, method, lean, usual, nearest))
    asked = f"{tokens:,} tokens in memory, r={config.lora_r}, {config.backend}"
    assumed = "full: Adam's averages in 16-bit, lean in 8-bit"
    models = ", ".join(size.example for size in sizes)
    return HardwareTable(tuple(cells), f"GiB. These settings: {asked}; {assumed}; models: {models}")


def memory_claims(points: Sequence[Measurement] = ()) -> tables.Table:
    """Recompute each of the often repeated sentences on memory; `points` are public measurements to look through."""
    names = ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "NousResearch/Llama-2-70b-hf")
    small, large, huge = map(memory.find, names)
    plain = TrainConfig(per_device_train_batch_size=1, backend="transformers")
    narrow, pure, mixed = ((2 + states) * small.parameters / 1e9 for states in (2, 4, 8))  # a gradient, and Adam's two
    full, frugal = (estimate(large, plain.replace(optim=name), method="full") for name in ("adamw_torch", "adamw_8bit"))
    lora = estimate(large, plain, method="lora")
    lean = estimate(huge, _lean(plain))
    usual = estimate(huge, plain.replace(max_length=4096, per_device_train_batch_size=4))
    seen = [point.allocated_gib for point in points if point.model == huge.name and point.setup.method == "qlora"]
    measured = f"; measured {min(seen):.0f} to {max(seen):.0f}" if seen else ""
    computed = {
        "gradients": f"{narrow:.0f} GB with Adam's averages in 8-bit, {pure:.0f} in 16-bit, {mixed:.0f} in 32-bit",
        "full": f"{full.likely_gib:.0f} GiB for an 8B all in 16-bit, {frugal.likely_gib:.0f} with Adam in 8-bit",
        "huge": f"{lean.likely_gib:.0f} GiB lean, "
        f"{usual.likely_gib:.0f} (to {usual.high_gib:.0f}) at 16,384 tokens{measured}",
        "lora": f"weights alone {2 * large.parameters / GIB:.0f} GiB, the run {lora.likely_gib:.0f}",
        "double_quantisation": f"{NF4_BITS - NF4_DOUBLE_BITS:.3f} bits per parameter",
    }
    sentences = files.sample("often_repeated")["sentences"]
    rows = [(row["claim"], row["says"], computed[row["key"]], row["verdict"]) for row in sentences]
    return tables.Table(("often repeated", "says", "computed", "so it is"), rows)


def settings_table(measured: Mapping[str, str] | None = None) -> tables.Table:
    """The often repeated ranges of settings, beside the kit's own and one sentence for each that was measured.

    Raises:
        ConfigError: a setting that the table does not have.
    """
    known = {row["setting"]: row for row in files.sample("often_repeated")["settings"]}
    said = measured or {}
    if strange := [name for name in said if name not in known]:
        raise ConfigError(f"{', '.join(strange)}: not in the table. It has: {', '.join(known)}.")
    usual = {spec.name: spec.metadata["typical"] for spec in fields(TrainConfig)}
    rows = []
    for name, row in known.items():
        advice = f"{row['low']:g} to {row['high']:g}: {row['advice']}"
        ours = "{:g} to {:g}".format(*usual[name]) if name in usual else preflight.CHECKS["effective-batch"]
        rows.append((name, advice, ours, f"{getattr(TrainConfig(), name):g}", said.get(name, "not measured here")))
    return tables.Table(("setting", "often repeated", "usual in this kit", "default", "measured"), rows, prose=True)


def _lean(config: TrainConfig) -> TrainConfig:
    lean = {"backend": "unsloth", "max_length": _LEAN_TOKENS, "gradient_checkpointing": True, "optim": "adamw_8bit"}
    return config.replace(per_device_train_batch_size=1, **lean)
