"""Unsloth beside plain PEFT and TRL on one GPU: tokens a second, peak memory, and the estimate beside the peak.

    python benchmarks/gpu.py [--shape meta-llama/Llama-3.2-1B] [--lengths 512 2048] [--steps 8] [--out FILE.json]

The weights are random: neither speed nor memory depends on their values, and nothing is downloaded. Each run has a
process of its own, rows of exactly the length, gradient checkpointing on, and the first two updates, which compile,
outside the clock.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WARM = 2  # updates outside the clock


def write_model(shape: str, folder: Path) -> None:
    """A model of this shape with random weights in bf16, beside the bundled model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ftkit import bundled
    from ftkit.shapes import _listed

    tokenizer = AutoTokenizer.from_pretrained(bundled.folder())
    facts = {key: value for key, value in _listed()[shape].items() if key != "model_type"}
    config = LlamaConfig(
        **facts, max_position_embeddings=8192, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows_of(length: int, count: int, tokenizer):
    """`count` chats of exactly `length` tokens; half of each is the answer."""
    from ftkit import data
    from ftkit.template import tokenize

    def chat(number: int, words: int):
        question = f"{number}:" + " a" * (words // 2)
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "b" + " b" * (words - words // 2)}]}  # fmt: skip

    def fitting(number: int):
        words = length - len(tokenize(chat(number, 0)["messages"], tokenizer)["input_ids"])
        found = chat(number, words)
        assert len(tokenize(found["messages"], tokenizer)["input_ids"]) == length
        return found

    examples = data.load_examples([fitting(100 + number) for number in range(count)])
    return data.Splits(examples.select(range(count - 2)), examples.select([count - 2]), examples.select([count - 1]))


def one(task: dict) -> None:
    """One run in this process; the last line printed is its result."""
    import torch

    from ftkit import hardware, memory, models, runs
    from ftkit.config import TrainConfig
    from ftkit.train import train

    length, steps = task["length"], task["steps"]
    config = TrainConfig(
        backend=task["backend"], dtype=task["dtype"], target_modules=tuple(task["targets"]), lora_r=16, lora_alpha=16,
        max_length=length, max_steps=steps, warmup_steps=0, eval_steps=0, save_steps=0,
        per_device_train_batch_size=task["batch"], gradient_accumulation_steps=1,
    )  # fmt: skip
    model, tokenizer = models.load(task["folder"], config)
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        splits = rows_of(length, 16, tokenizer)
        history = train(model, tokenizer, splits, config, runs.Run.create("one", folder), preflight=False)
    points = [point for point in history.points if point.loss is not None]
    seconds = points[-1].seconds - points[WARM - 1].seconds
    free, whole = torch.cuda.mem_get_info()
    shape = memory.ModelShape.from_config(model.config, task["shape"])
    estimate = memory.estimate(shape, config, backend=task["backend"], longest=length)
    print(json.dumps({
        **task, "device": str(hardware.detect()), "day": date.today().isoformat(), "versions": runs.versions(),
        "tokens_per_s": (points[-1].tokens - points[WARM - 1].tokens) / seconds,
        "allocated_gib": torch.cuda.max_memory_allocated() / hardware.GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / hardware.GIB, "used_gib": (whole - free) / hardware.GIB,
        "low_gib": estimate.low_gib, "likely_gib": estimate.likely_gib, "high_gib": estimate.high_gib,
        "losses": [point.loss for point in points], "items": [asdict(item) for item in estimate.items],
    }))  # fmt: skip


def tasks_of(options: argparse.Namespace, shape: str, folder: str) -> list[dict]:
    """What is measured of one shape: both backends on all linear layers, and once on attention alone, and once in fp16."""
    common = {"shape": shape, "folder": folder, "steps": options.steps, "batch": options.batch}
    ways = [("bf16", ALL, length) for length in options.lengths]
    if not options.brief:
        ways += [("bf16", ALL[:4], options.lengths[-1]), ("fp16", ALL, options.lengths[-1])]
    return [{**common, "backend": backend, "dtype": dtype, "targets": list(targets), "length": length}
            for dtype, targets, length in ways for backend in ("transformers", "unsloth")]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["meta-llama/Llama-3.2-1B"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--brief", action="store_true", help="all linear layers in bf16 alone")
    parser.add_argument("--root", default=None, help="where the random model is written, such as /dev/shm")
    parser.add_argument("--out", type=Path, default=None, help="JSON of every result")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(json.loads(options.one))
        return
    results = []
    print(f"{'shape':24} {'backend':13} {'dtype':5} {'targets':9} {'tokens':>6} {'tokens/s':>9} {'allocated':>9} {'reserved':>8} {'on card':>8}   estimate")
    for shape in options.shape:
        with tempfile.TemporaryDirectory(dir=options.root) as folder:
            subprocess.run([sys.executable, __file__, "--one-model", shape, folder], check=True)
            for task in tasks_of(options, shape, folder):
                results += measured(task)
                if options.out:
                    options.out.write_text(json.dumps(results))
    pairs = list(zip(results[::2], results[1::2], strict=False))
    for plain, fast in pairs:
        print(f"{plain['shape']} {plain['dtype']} {plain['length']}: Unsloth {fast['tokens_per_s'] / plain['tokens_per_s']:.2f} times the speed, "
              f"{fast['allocated_gib'] / plain['allocated_gib']:.2f} times the memory")  # fmt: skip
    errors = [abs(found["likely_gib"] / found["allocated_gib"] - 1) for found in results]
    print(f"estimate: mean error {statistics.mean(errors):.1%}, largest {max(errors):.1%}; "
          f"high end at or above what lay on the card in {sum(r['high_gib'] >= r['used_gib'] for r in results)} of {len(results)}")  # fmt: skip
    print(results[0]["device"], results[0]["day"], results[0]["versions"])


def measured(task: dict) -> list[dict]:
    """Run one task in a process of its own and print its line; nothing where it failed."""
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        print(f"{task['backend']} {task['length']} failed:\n{done.stderr[-1500:]}", flush=True)
        return []
    found = json.loads(done.stdout.splitlines()[-1])
    targets = "all" if len(found["targets"]) > 4 else "attention"
    print(f"{found['shape']:24} {found['backend']:13} {found['dtype']:5} {targets:9} {found['length']:6} {found['tokens_per_s']:9.0f} "
          f"{found['allocated_gib']:9.2f} {found['reserved_gib']:8.2f} {found['used_gib']:8.2f}   {found['low_gib']:.2f} · {found['likely_gib']:.2f} · {found['high_gib']:.2f}", flush=True)  # fmt: skip
    return [found]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-model"]:
        write_model(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
