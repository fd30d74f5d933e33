"""Errors of the memory estimate on public measurements, beside what others say for the same runs.

    python benchmarks/memory.py [--points FILE.csv]

Each point, likely and high end, is estimated with constants that were fitted without its model; how wide the range is
was chosen with all points in view. `--points` takes any CSV with the columns of
`memory_points.COLUMNS`; the constants are then those in use.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from memory_points import POINTS, read_points

from ftkit.hardware import GIB
from ftkit.lessons import held_out
from ftkit.lessons.measured import Measurement
from ftkit.memory import MemoryEstimate, estimate_setup

SAMPLES = Path(__file__).parents[1] / "ftkit/samples"
OFTEN_REPEATED = json.loads((SAMPLES / "often_repeated.json").read_text())["hardware"]

# https://github.com/hiyouga/LLaMA-Factory, README, hardware requirement (estimated).
# Billions, from and to: GB for full fine-tuning in pure bf16, LoRA, 4-bit QLoRA.
FACTORY = (
    (4.5, 10.5, {"full": 60, "lora": 16, "qlora": 6}),
    (10.5, 22, {"full": 120, "lora": 32, "qlora": 12}),
    (22, 50, {"full": 300, "lora": 64, "qlora": 24}),
    (50, 1e9, {"full": 600, "lora": 160, "qlora": 48}),
)
BYTES_EACH = {"full": 8.0, "lora": 2.0, "qlora": 0.5}


def often_repeated(parameters: int, method: str) -> float | None:
    """The often repeated table's number for a model of this size, in GiB as it writes GB."""
    billions = parameters / 1e9
    row = next(row for row in OFTEN_REPEATED if row["low_billions"] <= billions < row["high_billions"])
    return row["says_gib"][method]


def llama_factory(parameters: int, method: str) -> float:
    """LLaMA-Factory's number: its column of 7, 14, 30 or 70 billion, below that its formula for x billion; in GiB."""
    billions = parameters / 1e9
    for low, high, column in FACTORY:
        if low <= billions < high:
            return column[method] * 1e9 / GIB
    return BYTES_EACH[method] * parameters / GIB


def accelerate(parameters: int, method: str) -> float:
    """What `accelerate estimate-memory` (1.15.0) prints: training with Adam in bf16, or the size in the base's format.

    It knows no adapters: for LoRA a reader finds the 16-bit size, for QLoRA the 4-bit size.
    """
    return BYTES_EACH[method] * parameters / GIB


@dataclass(frozen=True)
class Row:
    """One way of knowing, on one class of points."""

    name: str
    quality: str
    count: int
    mean_error: float
    largest: float
    covered: str


def of_estimates(pairs: Sequence[tuple[Measurement, MemoryEstimate]], quality: str) -> Row:
    """Errors of the estimate, and how often the high end stays above what the source reports."""
    chosen = [(point, found) for point, found in pairs if point.quality == quality]
    errors = [abs(found.likely_gib / point.allocated_gib - 1) for point, found in chosen]
    above = sum(found.high_gib >= max(point.headline_gib, point.allocated_gib) for point, found in chosen)
    return Row("ftkit", quality, len(chosen), mean(errors), max(errors), f"{above} of {len(chosen)}")


def of_rule(name: str, rule: Callable[[int, str], float | None], measured: Sequence[Measurement], quality: str) -> Row:
    """Errors of a rule that knows the size and the method alone."""
    said = [(point, rule(point.shape.parameters, point.setup.method)) for point in measured if point.quality == quality]
    errors = [abs(number / point.allocated_gib - 1) for point, number in said if number is not None]
    above = sum(number >= point.allocated_gib for point, number in said if number is not None)
    return Row(name, quality, len(errors), mean(errors), max(errors), f"{above} of {len(errors)}")


def table(pairs: Sequence[tuple[Measurement, MemoryEstimate]]) -> list[Row]:
    """All rows, class by class."""
    measured = [point for point, _ in pairs]
    rules = (
        ("the often repeated table", often_repeated),
        ("LLaMA-Factory's table", llama_factory),
        ("accelerate estimate-memory", accelerate),
    )
    rows = []
    for quality in sorted({point.quality for point in measured}):
        rows.append(of_estimates(pairs, quality))
        rows += [of_rule(name, rule, measured, quality) for name, rule in rules]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, default=POINTS)
    parser.add_argument("--each", action="store_true", help="also print every point")
    chosen = parser.parse_args()
    measured, left_out = read_points(chosen.points)
    if chosen.points == POINTS:
        pairs = held_out(measured)
    else:
        pairs = [(point, estimate_setup(point.shape, point.setup)) for point in measured]
    print(f"{'':28} {'class':5} {'points':>6} {'mean error':>10} {'largest':>8}   not below the measurement")
    for row in table(pairs):
        errors = f"{100 * row.mean_error:8.1f} % {100 * row.largest:6.1f} %"
        print(f"{row.name:28} {row.quality:5} {row.count:6} {errors}   {row.covered}")
    ratios = sorted(found.high_gib / max(point.headline_gib, point.allocated_gib) for point, found in pairs)
    middle, ninth = median(ratios), ratios[int(0.9 * len(ratios))]
    print(f"\nhigh / measured: smallest {ratios[0]:.2f}, median {middle:.2f}, nine in ten below {ninth:.2f}, ", end="")
    print(f"largest {ratios[-1]:.2f}")
    for reason in sorted({out.reason for out in left_out}):
        print(f"left out: {sum(out.reason == reason for out in left_out)} points: {reason}")
    if chosen.each:
        for point, found in pairs:
            setup, guess = point.setup, found.likely_gib
            off = 100 * (guess / point.allocated_gib - 1)
            print(f"{point.id} {point.model:40} {setup.method:6} {setup.tokens:6} tokens", end=" ")
            print(f"{point.allocated_gib:7.2f} measured {guess:7.2f} likely {off:+6.1f} %", end=" ")
            print(f"{found.high_gib:7.2f} high {point.headline_gib:7.2f} headline")


if __name__ == "__main__":
    main()
