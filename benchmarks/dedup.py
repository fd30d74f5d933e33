"""Near-duplicate search on generated text with planted twins, beside datasketch, in one run.

    python benchmarks/dedup.py [--rows 20000 200000] [--datasketch 20000] [--words 300]

A tenth of the rows are twins: a copy of another row with so many words replaced that the pair's exact Jaccard
similarity of word 5-grams lies between 0.6 and 1. Recall counts planted pairs of 0.8 or more that end in one cluster;
precision counts reported pairs that reach 0.8. Each measurement has a process of its own, so that its peak memory is
its own.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from ftkit import data
from ftkit.data.similarity import join


def corpus(rows: int, words: int, seed: int = 1) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts whose word frequencies fall as 1/rank, and the positions of planted pairs."""
    draw = random.Random(seed)
    vocabulary = [f"w{i:x}" for i in range(50_000)]
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
    originals = rows * 9 // 10
    stream = draw.choices(vocabulary, weights, k=originals * words)
    texts = [" ".join(stream[i * words : (i + 1) * words]) for i in range(originals)]
    pairs = []
    for i in range(rows - originals):
        twin = texts[i].split()
        for place in draw.sample(range(words), draw.randint(0, max(1, words // 20))):
            twin[place] = f"new{draw.randrange(10**9)}"
        pairs.append((i, len(texts)))
        texts.append(" ".join(twin))
    return texts, pairs


def with_ftkit(texts: list[str], method: str) -> tuple[float, list[int], list[tuple[int, int]]]:
    """Seconds, clusters and pairs of `data.near_pairs`; imports are outside the clock, as they are for datasketch."""
    import numpy  # noqa: F401
    import rensa  # noqa: F401

    began = time.perf_counter()
    found = data.near_pairs(texts, 0.8, method=method)
    labels = found.clusters()
    return time.perf_counter() - began, labels, sorted(found.rows)


def with_datasketch(texts: list[str], bands: bool) -> tuple[float, list[int], list[tuple[int, int]]]:
    """The same by datasketch as its documentation writes it: a MinHash a text, an LSH index, a query a text."""
    from datasketch import MinHash, MinHashLSH

    began = time.perf_counter()
    lsh = MinHashLSH(num_perm=128, params=(16, 8)) if bands else MinHashLSH(threshold=0.8, num_perm=128)
    pairs = []
    for i, text in enumerate(texts):
        words = text.lower().split()
        sketch = MinHash(num_perm=128)
        sketch.update_batch([" ".join(words[j : j + 5]).encode() for j in range(len(words) - 4)])
        pairs += [(int(j), i) for j in lsh.query(sketch)]
        lsh.insert(str(i), sketch)
    return time.perf_counter() - began, join(len(texts), pairs), pairs


def alike(a: str, b: str) -> bool:
    """Whether two texts reach the threshold, told from their shingles."""
    return data.jaccard(data.word_shingles(a), data.word_shingles(b)) >= 0.8


def one(name: str, rows: int, words: int) -> dict[str, float]:
    """Measure one method on one size."""
    texts, planted = corpus(rows, words)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    run = {
        "ftkit minhash": lambda: with_ftkit(texts, "minhash"),
        "ftkit exact": lambda: with_ftkit(texts, "exact"),
        "datasketch 16x8": lambda: with_datasketch(texts, True),
        "datasketch at 0.8": lambda: with_datasketch(texts, False),
    }[name]
    seconds, labels, pairs = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    true = [(a, b) for a, b in planted if alike(texts[a], texts[b])]
    found = sum(labels[a] == labels[b] for a, b in true)
    right = sum(alike(texts[a], texts[b]) for a, b in pairs)
    return {
        "seconds": seconds,
        "peak": peak,
        "texts": before,
        "planted": len(true),
        "recall": found / len(true),
        "precision": right / len(pairs),
    }


def main() -> None:
    """Print one row a method and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--datasketch", type=int, default=20_000, help="largest size at which datasketch runs")
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.rows[0], options.words)))
        return
    head = ("seconds", "peak GiB", "texts GiB", "pairs >= 0.8", "recall", "precision")
    print(
        f"{'method':>17}  {'rows':>7}  {head[0]:>8}  {head[1]:>8}  "
        + f"{head[2]:>9}  {head[3]:>12}  {head[4]:>9}  {head[5]:>9}"
    )
    for rows in options.rows:
        names = ["ftkit minhash"] + (["ftkit exact"] if rows <= 20_000 else [])
        names += ["datasketch 16x8", "datasketch at 0.8"] if rows <= options.datasketch else []
        took = {}
        for name in names:
            size = ["--rows", str(rows), "--words", str(options.words)]
            command = [sys.executable, str(Path(__file__)), "--one", name, *size]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            r = json.loads(printed.splitlines()[-1])
            took[name] = r["seconds"]
            times = took[name] / took["ftkit minhash"]
            print(
                f"{name:>17}  {rows:>7}  {r['seconds']:>8.1f}  {r['peak']:>8.2f}  {r['texts']:>9.2f}  "
                f"{r['planted']:>12}  {r['recall']:>9.4f}  {r['precision']:>9.4f}   {times:.1f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
