"""Two processes on two cores beside one: the same run, the same batches, tokens a second.

    python benchmarks/processes.py [--steps 16] [--repeats 3] [--backend auto]

One process computes on two threads with twice the accumulation; two processes compute on a thread each and add up their
gradients over gloo. They take turns, each from a cold start; loading is outside the clock. Losses must agree.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ftkit import data, hardware, training
from ftkit.config import TrainConfig
from ftkit.runs import Run

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")


def run(root: Path, name: str, config: TrainConfig, *, processes: int) -> Run:
    """Train through the command line, as a reader would."""
    settings = training.share_among(config, processes).save(root / f"{name}.yaml")
    command = [sys.executable, "-m", *(TORCHRUN if processes > 1 else ()), "ftkit", "train", str(settings)]
    command += ["--data", str(root / "rows.jsonl"), "--name", name, "--root", str(root), "--test", "0.3"]
    threads = {"OMP_NUM_THREADS": str(2 // processes)}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | threads)
    return Run.open(root / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    config = TrainConfig.for_hardware(
        hardware.detect(),
        backend=options.backend,
        max_steps=options.steps,
        gradient_accumulation_steps=4,
        learning_rate=1e-3,
        warmup_steps=2,
        eval_steps=0,
        save_steps=0,
        max_eval_examples=4,
    )
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [{"messages": messages} for messages in data.load_examples("invoices")["messages"]]
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for repeat in range(options.repeats):
            losses = {}
            for processes in (1, 2):
                done = run(root, f"{processes}-{repeat}", config, processes=processes)
                facts = done.facts["train"]
                speeds[processes].append(facts["tokens_per_s"])
                losses[processes] = dict(training.History.load(done / "history.csv").losses)
                peak = facts["peak_memory_gib"]
                print(f"{processes} process(es): {facts['tokens_per_s']:.0f} tokens/s, {peak:.2f} GiB each", flush=True)
            apart = max(abs(losses[1][step] - losses[2][step]) for step in losses[1])
            print(f"losses differ by {apart:.4f} at most", flush=True)
    one, two = (statistics.median(speeds[processes]) for processes in (1, 2))
    ratios = [b / a for a, b in zip(speeds[1], speeds[2], strict=True)]
    print(
        f"median {one:.0f} and {two:.0f} tokens/s; two over one, pair by pair: {min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
