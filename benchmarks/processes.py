"""Two processes on two cores beside one, on one core and on both: the same run, the same batches, tokens a second.

    python benchmarks/processes.py [--steps 16] [--repeats 3] [--backend auto]

One process has twice the accumulation; two processes compute on a thread each and add up their gradients over gloo.
They take turns, each from a cold start; loading is outside the clock. Losses must agree.
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


WAYS = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes, a thread each": (2, 1)}


def run(root: Path, name: str, config: TrainConfig, processes: int, threads: int) -> Run:
    """Train through the command line, as a reader would."""
    settings = training.share_among(config, processes).save(root / f"{name}.yaml")
    command = [sys.executable, "-m", *(TORCHRUN if processes > 1 else ()), "ftkit", "train", str(settings)]
    command += ["--data", str(root / "rows.jsonl"), "--name", name, "--root", str(root), "--test", "0.3"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
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
        per_device_train_batch_size=2,
        max_steps=options.steps,
        gradient_accumulation_steps=4,
        learning_rate=1e-3,
        warmup_steps=2,
        eval_steps=0,
        save_steps=0,
        max_eval_examples=4,
    )
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [{"messages": messages} for messages in data.load_examples("invoices")["messages"]]
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for repeat in range(options.repeats):
            curves = []
            for number, (way, (processes, threads)) in enumerate(WAYS.items()):
                done = run(root, f"{number}-{repeat}", config, processes, threads)
                facts = done.facts["train"]
                speeds[way].append(facts["tokens_per_s"])
                curves.append(training.History.load(done / "history.csv").losses)
                print(f"{way}: {facts['tokens_per_s']:.0f} tokens/s, {facts['peak_memory_gib']:.2f} GiB", flush=True)
            apart = max(abs(one[1] - two[1]) for one, two in zip(curves[0], curves[2], strict=True))
            print(f"losses of one process and of two differ by {apart:.4f} at most", flush=True)
    for way, measured in speeds.items():
        print(f"{way}: median {statistics.median(measured):.0f} tokens/s")
    for way in list(WAYS)[:2]:
        ratios = [two / one for one, two in zip(speeds[way], speeds["two processes, a thread each"], strict=True)]
        print(f"two processes over {way}, pair by pair: {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
