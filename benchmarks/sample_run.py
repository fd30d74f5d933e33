"""Make `ftkit/samples/run`, the finished run that `Run.sample()` opens, from a run of the quickstart.

    make quickstart && python benchmarks/sample_run.py runs/quickstart

Checkpoints, pages and the rows that the package carries anyway stay behind.
"""

import shutil
import sys
from pathlib import Path

import ftkit
from ftkit.runs import Run

TARGET = Path(ftkit.__file__).parent / "samples/run"
KEPT = ("config.yaml", "adapter", "history.csv", "eval", "figures", "run.json")


def main(source: str) -> None:
    run = Run.open(source)
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    for name in KEPT:
        path = run.require(name)
        shutil.copytree(path, TARGET / name) if path.is_dir() else shutil.copy2(path, TARGET / name)
    print(f"{Run.sample()}: {sum(p.stat().st_size for p in TARGET.rglob('*') if p.is_file()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1])
