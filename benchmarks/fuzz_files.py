"""Mutated files of every kind against the readers: rows or an error of ftkit's own, and never anything else.

    python benchmarks/fuzz_files.py [--files 25000] [--seed 1]

Each file is a valid one of its kind with some bytes changed, cut out, doubled or put in, packed before or after that.
The readers run in processes of their own, so that a crash of one is told as well. Prints the outcomes by kind, and for
each foreign error its kind, seed and traceback; exits with 1 if there is one.
"""

import argparse
import bz2
import gzip
import io
import json
import random
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from ftkit import data
from ftkit.errors import FtkitError

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f'Which gate, "{i}"?\nAnd when\tdoes it open?'},
            {"role": "assistant", "content": "Gate four. \u00fc \U0001f600", "tool_calls": None},
        ],
        "id": i,
        "tags": ["a", None],
        "more": {"a": {"b": [1.5, None]}, "day": None},
    }
    for i in range(6)
]
PAIRS = [{"prompt": f'Q "{i}"; why, or\nnot?', "completion": f"A|{i} \u00fc"} for i in range(6)]
PACKINGS = ("", "", "", ".gz", ".bz2", ".zst", ".zip")
_BATCH = 250


def delimited(sign: str) -> bytes:
    """The pairs as a spreadsheet writes them."""
    import csv

    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"], delimiter=sign)
    writer.writeheader()
    writer.writerows(PAIRS)
    return text.getvalue().encode()


def arrow(write: str) -> bytes:
    """The rows as Parquet, or in one of Arrow's two formats."""
    table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
    if write == "parquet":
        pa.parquet.write_table(table, sink, row_group_size=2)
    else:
        with getattr(pa.ipc, write)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parents() -> list[tuple[str, bytes]]:
    """Valid files: an ending and a content each."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    columns = {name: {str(i): row[name] for i, row in enumerate(PAIRS)} for name in PAIRS[0]}
    return [
        (".jsonl", lines),
        (".jsonl", "".join(json.dumps(row["messages"]) + "\n" for row in ROWS).encode()),
        (".jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()),
        (".ndjson", b"\xef\xbb\xbf" + lines),
        (".json", json.dumps(ROWS, ensure_ascii=False).encode()),
        (".json", json.dumps({"train": ROWS, "test": ROWS[:2]}, indent=1).encode()),
        (".json", json.dumps(columns).encode()),
        (".csv", delimited(",")),
        (".csv", b"sep=;\r\n" + delimited(";")),
        (".csv", delimited("|")),
        (".tsv", delimited("\t")),
        (".parquet", arrow("parquet")),
        (".arrow", arrow("new_file")),
        (".arrow", arrow("new_stream")),
    ]


def mutated(draw: random.Random, content: bytes) -> bytes:
    """The content with up to four changes."""
    text = bytearray(content)
    for _ in range(draw.randint(0, 4)):
        at, size = draw.randrange(len(text) + 1), draw.choice((1, 1, 2, 4, 40))
        piece = draw.choice(
            (draw.randbytes(size), text[at : at + size] * 2, b"", b'"', b"\\ud800", b"\0", b"[" * 900, b"{}", b"\xff")
        )
        text[at : at + draw.choice((0, 1, size, len(text) if draw.random() < 0.1 else 0))] = piece
    return bytes(text)


def packed(content: bytes, packing: str, name: str) -> bytes:
    """The content in one of the packings."""
    if packing == ".zip":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, content)
        return archive.getvalue()
    ways = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}
    return ways[packing](content) if packing else content


def attempt(seed: int, folder: Path) -> tuple[str, str, str]:
    """Kind, outcome and traceback of one mutated file."""
    draw = random.Random(seed)
    ending, content = draw.choice(parents())
    packing = draw.choice(PACKINGS)
    if draw.random() < 0.5:
        content = packed(mutated(draw, content), packing, f"x{ending}")
    else:
        content = mutated(draw, packed(content, packing, f"x{ending}"))
    path = folder / f"x{ending}{packing}"
    path.write_bytes(content)
    kind = ending + packing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            examples = data.load_examples(path, on_error=draw.choice(("raise", "skip")))
            examples[:]
    except FtkitError:
        return kind, "refused", ""
    except Exception:  # noqa: BLE001 - what is looked for
        return kind, "foreign", traceback.format_exc()
    return kind, "read", ""


def batch(seeds: range) -> list[tuple[str, str, str]]:
    """The outcomes of some seeds."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        return [attempt(seed, Path(folder)) for seed in seeds]


def main() -> None:
    """Print the outcomes by kind, and every foreign error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=25_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    first, foreign = options.seed * 10**6, 0
    outcomes: Counter[tuple[str, str]] = Counter()
    for start in range(first, first + options.files, _BATCH * options.workers):
        batches = [
            range(begin, min(begin + _BATCH, first + options.files))
            for begin in range(start, min(start + _BATCH * options.workers, first + options.files), _BATCH)
        ]
        with ProcessPoolExecutor(options.workers) as pool:
            for seeds, waiting in [(seeds, pool.submit(batch, seeds)) for seeds in batches]:
                try:
                    results = waiting.result()
                except BrokenProcessPool:
                    results = [("?", "foreign", f"a process died among seeds {seeds.start} to {seeds.stop - 1}")]
                for seed, (kind, outcome, trace) in zip(seeds, results, strict=False):
                    outcomes[kind, outcome] += 1
                    if trace:
                        foreign += 1
                        print(f"seed {seed}, {kind}:\n{trace}", flush=True)
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:>14}  {outcome:>8}  {number:>6}")
    print(f"{options.files} files, {foreign} foreign errors")
    sys.exit(foreign > 0)


if __name__ == "__main__":
    main()
