"""Public measurements of training memory, each with its source, as settings that the estimate takes.

The rows come from the tables and logs that each one names; nothing here was measured by this kit. The constants of the
estimate are fitted to them here, and held-out errors computed. Knows no arithmetic of memory: it asks the estimate.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path

from ftkit import memory
from ftkit.errors import ConfigError, DataError, ModelError
from ftkit.memory import Constants, ModelShape, TrainingSetup, estimate_setup, peak_gib

COLUMNS = (
    "id",
    "model",
    "method",
    "weight_storage",
    "compute_dtype",
    "seq_len",
    "micro_batch",
    "tokens_per_step_fwd",
    "lora_r",
    "target_modules",
    "optimizer",
    "grad_checkpointing",
    "attention",
    "loss_path",
    "gpu",
    "peak_alloc_gib",
    "headline_gib",
    "headline_metric",
    "framework",
    "quality",
    "source",
    "notes",
)


@dataclass(frozen=True)
class Measurement:
    """One published run: how it trained, and the peak that its authors measured.

    Attributes:
        allocated_gib: peak that torch's allocator handed out; what an estimate's `likely_gib` stands beside.
        headline_gib: what the source reports, which may include the allocator's reserve and the CUDA context.
        quality: "A" exact tokens and metric, "B" one of them inferred, "C" looser.
    """

    id: str
    model: str
    shape: ModelShape
    setup: TrainingSetup
    allocated_gib: float
    headline_gib: float
    metric: str
    device: str
    framework: str
    quality: str
    source: str


@dataclass(frozen=True)
class LeftOut:
    """A row that no estimate can stand beside, and why."""

    id: str
    model: str
    quality: str
    reason: str


def measurements(path: str | Path | None = None, qualities: str = "AB") -> tuple[list[Measurement], list[LeftOut]]:
    """Read measured points and the rows that had to be left out.

    Args:
        path: a CSV with the columns `COLUMNS`; by default the points that come with the package.
        qualities: which classes to read.

    Raises:
        DataError: a column is missing, or a number is none; names the row.
    """
    found, out = [], []
    for row in _rows(path):
        if row["quality"] not in qualities:
            continue
        try:
            found.append(_point(row))
        except (ConfigError, ModelError) as error:
            out.append(LeftOut(row["id"], row["model"], row["quality"], str(error).splitlines()[0]))
    return found, out


@dataclass(frozen=True)
class MeasuredPair:
    """Two published runs of one model that differ only in the method."""

    model: str
    parameters: int
    device: str
    length: int
    first_gib: float
    second_gib: float

    @property
    def ratio(self) -> float:
        """How many times as much the first needed."""
        return self.first_gib / self.second_gib


def measured_pairs(
    measured: Iterable[Measurement], first: str = "lora", second: str = "qlora"
) -> tuple[MeasuredPair, ...]:
    """Runs of one source, model, card and setting that differ only in the method, largest model last."""
    groups: dict[Measurement, dict[str, Measurement]] = {}
    for point in measured:
        # what the method itself brings along is not a setting of the reader's
        setup = replace(point.setup, method=first, double_quant=False, adapter_bytes=4, upcast=False)
        same = replace(point, id="", setup=setup, allocated_gib=0.0, headline_gib=0.0, quality="")
        groups.setdefault(same, {})[point.setup.method] = point
    found = [
        MeasuredPair(
            same.model,
            same.shape.parameters,
            same.device,
            same.setup.length,
            runs[first].allocated_gib,
            runs[second].allocated_gib,
        )
        for same, runs in groups.items()
        if first in runs and second in runs
    ]
    return tuple(sorted(found, key=lambda pair: (pair.parameters, pair.length)))


def fit_constants(points: Sequence[Measurement], rounds: int = 6) -> Constants:
    """The constants with the smallest error on these points, to two decimals; what no point tells of stays as it is."""
    found = Constants()
    names = [field.name for field in fields(Constants)]
    for _ in range(rounds):
        before = found
        for name in names:
            found = _best(found, name, points)
        if all(abs(getattr(found, name) - getattr(before, name)) < _FINE for name in names):
            break
    return replace(found, **{name: round(getattr(found, name), 2) for name in names})


def held_out(points: Sequence[Measurement]) -> list[tuple[Measurement, float]]:
    """Each point with its estimate in GiB, under constants that were fitted without its model."""
    estimates = []
    for model in dict.fromkeys(point.model for point in points):
        constants = fit_constants([point for point in points if point.model != model])
        estimates += [(point, _likely(point, constants)) for point in points if point.model == model]
    return estimates


def mean_error(pairs: Sequence[tuple[Measurement, float]], quality: str) -> float:
    """Mean absolute relative error of estimates such as `held_out` gives, over the points of one quality."""
    errors = [abs(guess / point.allocated_gib - 1) for point, guess in pairs if point.quality == quality]
    return sum(errors) / len(errors)


def share_below_high(points: Sequence[Measurement]) -> float:
    """Share of runs whose peak, as the source reports it, is not above the high end of the estimate."""
    below = [estimate_setup(point.shape, point.setup).high_gib >= point.headline_gib for point in points]
    return sum(below) / len(below)


_LOSSES = (
    ("full-logits", "full"),
    ("fast-ce", "fast"),
    ("chunked", "chunked"),
    ("fused", "chunked"),
    ("cut", "chunked"),
    ("liger", "chunked"),
)

_SHORT = {
    "o": ("o_proj", "dense"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "c_proj": ("o_proj", "down_proj"),
    "w1": ("up_proj",),
    "w2": ("gate_proj",),
}


def _rows(path: str | Path | None) -> Iterable[Mapping[str, str]]:
    if path is None:
        text = resources.files("ftkit").joinpath("samples/memory_points.json").read_text(encoding="utf-8")
        document = json.loads(text)
        rows = [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]]
        return [row | {"source": document["sources"][int(row["source"])]} for row in rows]
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path} has no column {', '.join(missing)}.")
        return list(reader)


def _point(row: Mapping[str, str]) -> Measurement:
    shape = _shape(row)
    try:
        setup = _setup(row, shape)
        allocated = float(row["peak_alloc_gib"] or row["headline_gib"])
        headline = float(row["headline_gib"] or allocated)
    except ConfigError:
        raise
    except ValueError as error:
        raise DataError(f"Point {row['id']}: {error}.") from error
    return Measurement(
        row["id"],
        row["model"],
        shape,
        setup,
        allocated,
        headline,
        row["headline_metric"],
        row["gpu"],
        row["framework"],
        row["quality"],
        row["source"],
    )


def _shape(row: Mapping[str, str]) -> ModelShape:
    name = row["model"]
    if "mixtral" in name.lower():
        raise ConfigError(f"{name} is a mixture of experts.")
    if name not in memory.names():
        raise ConfigError(f"{name} is not described.")
    shape = memory.find(name)
    return shape.split() if "o_proj" not in {matrix.name for matrix in shape.matrices} else shape


def _setup(row: Mapping[str, str], shape: ModelShape) -> TrainingSetup:
    method = row["method"]
    if method == "full" and "check yaml" in row["notes"]:
        raise ConfigError("its optimiser is not stated.")
    if not row["micro_batch"] or not (row["tokens_per_step_fwd"] or row["seq_len"]):
        raise ConfigError("how many tokens it had in memory is not stated.")
    batch, saver = int(row["micro_batch"]), row["grad_checkpointing"]
    tokens = int(row["tokens_per_step_fwd"] or batch * int(row["seq_len"]))
    return TrainingSetup(
        method=method,
        micro_batch=batch,
        length=max(1, tokens // batch),
        r=int(row["lora_r"] or 1),
        target_modules=() if method == "full" else _targets(row["target_modules"], shape),
        double_quant="dq" in row["weight_storage"],
        compute_bytes=4 if row["compute_dtype"] == "fp32" else 2,
        adapter_bytes=2 if row["framework"].startswith("litgpt") else 4,
        optim="adamw_8bit" if "8bit" in row["optimizer"] else "adamw_torch",
        checkpointing=not saver.startswith("off"),
        offloaded="unsloth" in saver,
        eager=row["attention"] == "eager",
        loss_path=next((path for sign, path in _LOSSES if sign in row["loss_path"]), "full"),
        upcast=method == "qlora" and "prepare_model_for_kbit" in row["notes"],
    )


def _targets(text: str, shape: ModelShape) -> tuple[str, ...]:
    """Short names such as `q,v` as the model names them; a name that no layer has is dropped, as the run did."""
    there = [matrix.name for matrix in shape.matrices]
    if text == "all-linear":
        return tuple(there)
    wanted: set[str] = set()
    for name in text.split(","):
        wanted.update(_SHORT.get(name, (f"{name}_proj",)))
    found = tuple(name for name in there if name in wanted)
    if not found:
        raise ConfigError(f"which matrices carry its adapter is not stated ({text or 'empty'}).")
    return found


_RANGES = {
    "logits": (1.0, 6.0),
    "logits_wide": (1.0, 6.0),
    "logits_fast": (0.5, 5.0),
    "scores": (4.0, 30.0),
    "scores_wide": (4.0, 30.0),
    "kept": (0.4, 2.0),
}

_FINE = 1e-3


def _likely(point: Measurement, constants: Constants) -> float:
    return peak_gib(point.shape, point.setup, constants)


def _fit_error(constants: Constants, points: Sequence[Measurement]) -> float:
    """Mean absolute relative error: one odd log then counts as one, not as the square of its oddness."""
    return sum(abs(_likely(point, constants) / point.allocated_gib - 1) for point in points) / len(points)


def _best(start: Constants, name: str, points: Sequence[Measurement]) -> Constants:
    low, high = _RANGES[name]
    touched = [point for point in points if _moves(point, name)]
    if not touched:
        return start
    while high - low > _FINE:
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if _fit_error(replace(start, **{name: one}), touched) <= _fit_error(replace(start, **{name: two}), touched):
            high = two
        else:
            low = one
    return replace(start, **{name: (low + high) / 2})


def _moves(point: Measurement, name: str) -> bool:
    low, high = (_likely(point, Constants(**{name: value})) for value in _RANGES[name])
    return low != high
