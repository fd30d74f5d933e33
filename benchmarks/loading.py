"""Time and peak memory of loading a file of many rows and of splitting them, in one run.

    python benchmarks/loading.py [--rows 300000] [--words 100]

A tenth of the rows are twins of another row, with one word changed. Seconds are those of the clock and, beside them,
those of the processor: on a busy machine the second number is the one to compare. The peak is of the process so far.
"""

import argparse
import itertools
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftkit import data


def write(path: Path, rows: int, words: int) -> None:
    """Rows of a question and an answer, whose word frequencies fall as 1/rank."""
    draw = random.Random(1)
    vocabulary = [f"w{i:x}" for i in range(50_000)]
    stream = draw.choices(vocabulary, [1 / (rank + 10) for rank in range(len(vocabulary))], k=2_000_000)
    text = stream[:words]
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            if i % 10 == 9:
                text[draw.randrange(words)] = f"new{i}"
            else:
                starts = [draw.randrange(len(stream) - 10) for _ in range(0, words, 10)]
                text = list(itertools.chain.from_iterable(stream[start : start + 10] for start in starts))[:words]
            cut = words * 2 // 5
            turns = [{"role": "user", "content": " ".join(text[:cut])}]
            turns.append({"role": "assistant", "content": " ".join(text[cut:])})
            file.write(json.dumps({"messages": turns, "id": i}) + "\n")


def measured(name: str, run: Callable[[], Any]) -> Any:
    """Print what a step took, and hand out what it gave."""
    began, busy = time.perf_counter(), time.process_time()
    result = run()
    seconds, processor = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:>10}  {seconds:>8.1f}  {processor:>10.1f}  {peak:>8.2f}", flush=True)
    return result


def main() -> None:
    """Print one row a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--words", type=int, default=100, help="of a row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, options.rows, options.words)
        print(f"{options.rows} rows of {options.words} words, {path.stat().st_size / 2**20:.0f} MiB")
        print(f"{'step':>10}  {'seconds':>8}  {'processor':>10}  {'peak GiB':>8}")
        examples = measured("load", lambda: data.load_examples(path))
        splits = measured("split", lambda: data.split(examples))
        print(splits)


if __name__ == "__main__":
    main()
