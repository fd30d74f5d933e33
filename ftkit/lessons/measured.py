"""Public measurements of training memory, each with its source, as settings that the estimate takes.

`benchmarks/memory_points.py` writes them from the tables and logs that each one names; nothing here was measured by
this kit. The constants of the estimate are fitted to them here, and held-out errors computed. Knows no arithmetic of
memory: it asks the estimate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean as mean

from ftkit import files, memory
from ftkit.memory import Constants, MemoryEstimate, ModelShape, TrainingSetup, estimate_setup, peak_gib

_FINE, _ROUNDS = 1e-3, 6
_RANGES = {  # where each constant is looked for
    "logits": (1.0, 6.0),
    "logits_wide": (1.0, 6.0),
    "logits_fast": (0.5, 5.0),
    "scores": (4.0, 30.0),
    "scores_wide": (4.0, 30.0),
    "kept": (0.4, 2.0),
}


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


def measurements() -> tuple[list[Measurement], list[LeftOut]]:
    """The measured points of quality A and B that come with the package, and the rows that had to be left out."""
    document, found = files.sample("memory_points"), []
    for point in document["points"]:
        modules = tuple(point["setup"]["target_modules"])
        point["setup"] = TrainingSetup(**{**point["setup"], "target_modules": modules})
        point["source"] = document["sources"][point["source"]]
        found.append(Measurement(shape=shape_of(point["model"]), **point))
    return found, [LeftOut(**row) for row in document["left_out"]]


def shape_of(model: str) -> ModelShape:
    """The shape of a listed model as published runs load it: with fused matrices taken apart."""
    shape = memory.find(model)
    return shape if "o_proj" in {matrix.name for matrix in shape.matrices} else shape.split()


@dataclass(frozen=True)
class MeasuredPair:
    """Two published runs of one model that differ only in the method; `ratio` says what the first needed of both."""

    model: str
    parameters: int
    device: str
    length: int
    ratio: float


def measured_pairs(measured: Iterable[Measurement]) -> list[MeasuredPair]:
    """16-bit LoRA over QLoRA, for runs of one source, model, card and setting; largest model last."""
    groups: dict[Measurement, dict[str, float]] = {}
    for point in measured:
        # what the method itself brings along is not a setting of the reader's
        setup = replace(point.setup, method="lora", double_quant=False, adapter_bytes=4, upcast=False)
        same = replace(point, id="", setup=setup, allocated_gib=0.0, headline_gib=0.0, quality="")
        groups.setdefault(same, {})[point.setup.method] = point.allocated_gib
    found = []
    for same, peaks in groups.items():
        if {"lora", "qlora"} <= set(peaks):
            ratio = peaks["lora"] / peaks["qlora"]
            found.append(MeasuredPair(same.model, same.shape.parameters, same.device, same.setup.length, ratio))
    return sorted(found, key=lambda pair: (pair.parameters, pair.length))


def fit_constants(points: Sequence[Measurement]) -> Constants:
    """The constants with the smallest error on these points, to two decimals; what no point tells of stays as it is."""
    found = Constants()
    for _ in range(_ROUNDS):
        before = found
        for name, (low, high) in _RANGES.items():
            ends = Constants(**{name: low}), Constants(**{name: high})
            least, most = (_estimated(points, constants) for constants in ends)
            moved = [one[0] for one, other in zip(least, most, strict=True) if one != other]
            while moved and high - low > _FINE:
                one, two = low + (high - low) / 3, high - (high - low) / 3
                errors = [_error(_estimated(moved, replace(found, **{name: value}))) for value in (one, two)]
                low, high = (low, two) if errors[0] <= errors[1] else (one, high)
            if moved:
                found = replace(found, **{name: (low + high) / 2})
        if all(abs(getattr(found, name) - getattr(before, name)) < _FINE for name in _RANGES):
            break
    return replace(found, **{name: round(getattr(found, name), 2) for name in _RANGES})


def held_out(points: Sequence[Measurement]) -> list[tuple[Measurement, MemoryEstimate]]:
    """Each point with its estimate, under constants that were fitted without its model.

    How wide the range is was chosen with all of them in view (`memory.estimates`).
    """
    estimates = []
    for model in dict.fromkeys(point.model for point in points):
        constants = fit_constants([point for point in points if point.model != model])
        alike = [point for point in points if point.model == model]
        estimates += [(point, estimate_setup(point.shape, point.setup, constants=constants)) for point in alike]
    return estimates


def mean_error(pairs: Sequence[tuple[Measurement, MemoryEstimate]], quality: str = "") -> float:
    """Mean absolute relative error of estimates such as `held_out` gives, over the points of one quality or over all.

    One odd log counts as one, not as the square of its oddness.
    """
    return _error([(point, found.likely_gib) for point, found in pairs if quality in ("", point.quality)])


def share_below_high(pairs: Sequence[tuple[Measurement, MemoryEstimate]], quality: str = "") -> float:
    """Share of runs whose peak, as the source reports it, is not above the high end of the estimate."""
    return mean(found.high_gib >= point.headline_gib for point, found in pairs if quality in ("", point.quality))


def _error(pairs: Sequence[tuple[Measurement, float]]) -> float:
    return mean(abs(guess / point.allocated_gib - 1) for point, guess in pairs)


def _estimated(points: Sequence[Measurement], constants: Constants) -> list[tuple[Measurement, float]]:
    return [(point, peak_gib(point.shape, point.setup, constants)) for point in points]
