"""Refit the constants of `memory.Constants` to public measurements, and hold out one model at a time.

    python benchmarks/memory_fit.py [--points FILE.csv]

The constants that it prints are those that stand in `ftkit/memory/footprint.py`; a test compares them.
"""

import argparse
from pathlib import Path

from memory_points import POINTS, read_points

from ftkit.lessons import held_out, mean_error
from ftkit.lessons.measured import fit_constants
from ftkit.memory import Constants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, default=POINTS)
    measured, _ = read_points(parser.parse_args().points)
    print(f"{len(measured)} points of {len({point.model for point in measured})} models")
    print(f"fitted    {fit_constants(measured)}\nin use    {Constants()}")
    pairs = held_out(measured)
    for quality in sorted({point.quality for point in measured}):
        print(f"quality {quality}: mean error {100 * mean_error(pairs, quality):.1f} %, each model held out")


if __name__ == "__main__":
    main()
