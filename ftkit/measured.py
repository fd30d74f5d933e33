"""Public measurements of training memory, each with its source, as settings that the estimate takes.

The rows come from the tables and logs that each one names; nothing here was measured by this kit.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from ftkit import shapes
from ftkit.errors import ConfigError, DataError, ModelError
from ftkit.footprint import Way
from ftkit.shapes import ModelShape

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


@dataclass(frozen=True)
class Point:
    """One published run: how it trained, and the peak that its authors measured.

    Attributes:
        allocated_gib: peak that torch's allocator handed out; what an estimate's `likely_gib` stands beside.
        headline_gib: what the source reports, which may include the allocator's reserve and the CUDA context.
        quality: "A" exact tokens and metric, "B" one of them inferred, "C" looser.
    """

    id: str
    model: str
    shape: ModelShape
    way: Way
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


def points(path: str | Path | None = None, qualities: str = "AB") -> tuple[list[Point], list[LeftOut]]:
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


def _point(row: Mapping[str, str]) -> Point:
    shape = _shape(row)
    try:
        way = _way(row, shape)
        allocated = float(row["peak_alloc_gib"] or row["headline_gib"])
        headline = float(row["headline_gib"] or allocated)
    except ConfigError:
        raise
    except ValueError as error:
        raise DataError(f"Point {row['id']}: {error}.") from error
    return Point(
        row["id"],
        row["model"],
        shape,
        way,
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
    if name not in shapes.names():
        raise ConfigError(f"{name} is not described.")
    shape = shapes.find(name)
    return shape.split() if "o_proj" not in {matrix.name for matrix in shape.matrices} else shape


def _way(row: Mapping[str, str], shape: ModelShape) -> Way:
    method = row["method"]
    if method == "full" and "check yaml" in row["notes"]:
        raise ConfigError("its optimiser is not stated.")
    if not row["micro_batch"] or not (row["tokens_per_step_fwd"] or row["seq_len"]):
        raise ConfigError("how many tokens it had in memory is not stated.")
    batch, saver = int(row["micro_batch"]), row["grad_checkpointing"]
    tokens = int(row["tokens_per_step_fwd"] or batch * int(row["seq_len"]))
    return Way(
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
    short = text.split(",")
    wanted = {
        full
        for name in short
        for full in ((f"{name}_proj",) if name not in _SHORT or (name == "c_attn" and "q" in short) else _SHORT[name])
    }
    found = tuple(name for name in there if name in wanted)
    if not found:
        raise ConfigError(f"which matrices carry its adapter is not stated ({text or 'empty'}).")
    return found


@dataclass(frozen=True)
class Pair:
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


def pairs(measured: Iterable[Point], first: str = "lora", second: str = "qlora") -> tuple[Pair, ...]:
    """Runs of one source, model, card and setting that differ only in the method, largest model last."""
    groups: dict[Point, dict[str, Point]] = {}
    for point in measured:
        # what the method itself brings along is not a setting of the reader's
        way = replace(point.way, method=first, double_quant=False, adapter_bytes=4, upcast=False)
        same = replace(point, id="", way=way, allocated_gib=0.0, headline_gib=0.0, quality="")
        groups.setdefault(same, {})[point.way.method] = point
    found = [
        Pair(
            same.model,
            same.shape.parameters,
            same.device,
            same.way.length,
            runs[first].allocated_gib,
            runs[second].allocated_gib,
        )
        for same, runs in groups.items()
        if first in runs and second in runs
    ]
    return tuple(sorted(found, key=lambda pair: (pair.parameters, pair.length)))
