"""Read public measurements of training memory from a CSV, as settings that the estimate takes.

    python benchmarks/memory_points.py

writes the points of quality A and B that come with the package, with their sources listed once.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ftkit import files, memory
from ftkit.errors import ConfigError, DataError, ModelError
from ftkit.lessons.measured import LeftOut, Measurement, shape_of
from ftkit.memory import ModelShape, TrainingSetup

ROOT = Path(__file__).parents[1]
POINTS = ROOT / "tests/published/vram_dev.csv"
PACKAGED = ROOT / "ftkit/samples/memory_points.json"
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
LOSSES = {
    "full-logits": "full",
    "fast-ce": "fast",
    "chunked": "chunked",
    "fused": "chunked",
    "cut": "chunked",
    "liger": "chunked",
}
SHORT = {
    "o": ("o_proj", "dense"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "c_proj": ("o_proj", "down_proj"),
    "w1": ("up_proj",),
    "w2": ("gate_proj",),
}


def read_points(path: Path = POINTS, qualities: str = "AB") -> tuple[list[Measurement], list[LeftOut]]:
    """Read measured points of these qualities, and the rows that have to be left out.

    Raises:
        DataError: a column of `COLUMNS` is missing, or a number is none; names the row.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path} has no column {', '.join(missing)}.")
        rows = [row for row in reader if row["quality"] in qualities]
    found, out = [], []
    for row in rows:
        try:
            found.append(point_of(row))
        except (ConfigError, ModelError) as error:
            out.append(LeftOut(row["id"], row["model"], row["quality"], str(error).splitlines()[0]))
    return found, out


def point_of(row: Mapping[str, str]) -> Measurement:
    name = row["model"]
    if "mixtral" in name.lower():
        raise ConfigError(f"{name} is a mixture of experts.")
    if name not in memory.names():
        raise ConfigError(f"{name} is not described.")
    shape = shape_of(name)
    try:
        setup = setup_of(row, shape)
        allocated = float(row["peak_alloc_gib"] or row["headline_gib"])
        headline = float(row["headline_gib"] or allocated)
    except ConfigError:
        raise
    except ValueError as error:
        raise DataError(f"Point {row['id']}: {error}.") from error
    return Measurement(
        id=row["id"],
        model=name,
        shape=shape,
        setup=setup,
        allocated_gib=allocated,
        headline_gib=headline,
        metric=row["headline_metric"],
        device=row["gpu"],
        framework=row["framework"],
        quality=row["quality"],
        source=row["source"],
    )


def setup_of(row: Mapping[str, str], shape: ModelShape) -> TrainingSetup:
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
        target_modules=() if method == "full" else targets_of(row["target_modules"], shape),
        double_quant="dq" in row["weight_storage"],
        compute_bytes=4 if row["compute_dtype"] == "fp32" else 2,
        adapter_bytes=2 if row["framework"].startswith("litgpt") else 4,
        optim="adamw_8bit" if "8bit" in row["optimizer"] else "adamw_torch",
        checkpointing=not saver.startswith("off"),
        offloaded="unsloth" in saver,
        eager=row["attention"] == "eager",
        loss_path=next((path for sign, path in LOSSES.items() if sign in row["loss_path"]), "full"),
        upcast=method == "qlora" and "prepare_model_for_kbit" in row["notes"],
    )


def targets_of(text: str, shape: ModelShape) -> tuple[str, ...]:
    """Short names such as `q,v` as the model names them; a name that no layer has is dropped, as the run did."""
    there = [matrix.name for matrix in shape.matrices]
    if text == "all-linear":
        return tuple(there)
    wanted: set[str] = set()
    for name in text.split(","):
        wanted.update(SHORT.get(name, (f"{name}_proj",)))
    found = tuple(name for name in there if name in wanted)
    if not found:
        raise ConfigError(f"which matrices carry its adapter is not stated ({text or 'empty'}).")
    return found


def main() -> None:
    points, left_out = read_points()
    sources = list(dict.fromkeys(point.source for point in points))
    rows = []
    for point in points:
        facts = vars(point) | {"setup": asdict(point.setup), "source": sources.index(point.source)}
        del facts["shape"]
        rows.append(json.dumps(facts))
    left = [json.dumps(asdict(row)) for row in left_out]
    text = json.dumps({"sources": sources}, indent=1)[:-2]
    for name, lines in (("points", rows), ("left_out", left)):
        text += f',\n "{name}": [\n  ' + ",\n  ".join(lines) + "\n ]"
    files.write_text(PACKAGED, text + "\n}\n")


if __name__ == "__main__":
    main()
