"""What an export of the bundled model takes, and whether it answers as its adapter did, on 50 prompts.

    python benchmarks/publish.py [--run runs/quickstart] [--out exports/benchmark]

Without a run the sample is exported; the first call also fetches the converter, which takes seconds.
The task is the invoices that no training saw.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ftkit import Run, data, hardware, publishing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run folder with an adapter (default: the sample run)")
    parser.add_argument("--out", type=Path, help="where to export to (default: a folder that is removed afterwards)")
    options = parser.parse_args()
    run = Run.open(options.run) if options.run else Run.sample()
    test = data.load_examples("invoices", split="test")
    with tempfile.TemporaryDirectory() as spare:
        out = options.out or Path(spare)
        print(f"{hardware.detect()}, llama.cpp on one thread\n")
        merged, merging_s = timed(publishing.merge, run, out)
        report, parity_s = timed(publishing.parity, run, merged, test)
        print(f"{report}\n")
        seconds = {}
        for quant in ("f16", "q8_0"):
            gguf, seconds[quant] = timed(publishing.to_gguf, merged, quant, out)
            served, asking_s = timed(publishing.parity, merged, gguf, test)
            made = f"{gguf.stat().st_size / 2**20:.0f} MiB in {seconds[quant]:.1f} s"
            print(f"{served}\n{gguf.name}: {made}, asked in {asking_s:.1f} s\n")
            for report in served.scores.values():
                print(f"{report}\n")
        print(f"merge {merging_s:.1f} s, parity {parity_s:.1f} s, merge + f16 {merging_s + seconds['f16']:.1f} s")


def timed(step, *arguments):
    """What a step gives back, and its seconds."""
    began = time.perf_counter()
    return step(*arguments), time.perf_counter() - began


if __name__ == "__main__":
    main()
