"""Unsloth beside plain PEFT and TRL on one GPU: tokens a second, peak memory, and the estimate beside the peak.

    python benchmarks/gpu.py [--shapes meta-llama/Llama-3.2-1B] [--lengths 512 2048] [--steps 8] [--out FILE.json]

The weights are random: neither speed nor memory depends on their values, and nothing is downloaded. Each backend has a
process of its own; rows have exactly the length, gradient checkpointing is on, and the first two updates, which
compile, are outside the clock.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from ftkit import data, hardware, memory, models, runs
from ftkit.chat import tokenize
from ftkit.config import TrainConfig
from ftkit.training import train

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WARM = 2  # updates outside the clock
HEAD = (
    "shape",
    "backend",
    "dtype",
    "adapter on",
    "tokens",
    "tokens/s",
    "allocated",
    "reserved",
    "on the card",
    "estimate, GiB",
)
FORMAT = "{:24} {:13} {:5} {:10} {:>6} {:>9} {:>9} {:>8} {:>11}   {}"


def write_model(shape: str, folder: Path) -> None:
    """A model of this shape with random weights in bf16, beside the bundled model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(models.resolve(models.BUNDLED))
    found = memory.find(shape)
    config = LlamaConfig(
        hidden_size=found.hidden_size,
        num_hidden_layers=found.num_layers,
        num_attention_heads=found.num_attention_heads,
        num_key_value_heads=found.num_key_value_heads,
        head_dim=found.head_dim,
        intermediate_size=found.intermediate_size,
        vocab_size=found.vocab_size,
        tie_word_embeddings=found.tie_word_embeddings,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows_of(length: int, count: int, tokenizer):
    """Splits of `count` chats of exactly `length` tokens; half of each is the answer."""

    def chat(number: int, words: int):
        asked, answered = " a" * (words // 2), " b" * (words - words // 2)
        return [
            {"role": "user", "content": f"{number}:{asked}"},
            {"role": "assistant", "content": f"b{answered}"},
        ]

    spare = length - len(tokenize(chat(100, 0), tokenizer)["input_ids"])
    chats = [chat(100 + number, spare) for number in range(count)]
    assert {len(tokenize(messages, tokenizer)["input_ids"]) for messages in chats} == {length}
    examples = data.load_examples([{"messages": messages} for messages in chats])
    return data.Splits(examples.select(range(count - 2)), examples.select([count - 2]), examples.select([count - 1]))


def run(task: dict) -> dict:
    """One short training in this process, from a freshly loaded model."""
    import torch

    if task["backend"] == "transformers":
        import transformers  # noqa: F401  # first, so that Unsloth stays out of this process

    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() / hardware.GIB
    length = task["length"]
    config = TrainConfig(
        backend=task["backend"],
        dtype=task["dtype"],
        target_modules=tuple(task["targets"]),
        lora_r=16,
        lora_alpha=16,
        max_length=length,
        max_steps=task["steps"],
        warmup_steps=0,
        eval_steps=0,
        save_steps=0,
        per_device_train_batch_size=task["batch"],
        gradient_accumulation_steps=1,
    )
    model, tokenizer = models.load(task["folder"], config)
    model = models.add_lora(model, config)
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            model, tokenizer, rows_of(length, 16, tokenizer), config, runs.Run.create("one", folder), preflight=False
        )
    free, whole = torch.cuda.mem_get_info()
    points = [point for point in history.points if point.loss is not None]
    shape = memory.ModelShape.from_config(model.config, task["shape"])
    estimate = memory.estimate(shape, config, backend=task["backend"], longest=length, loss_path=memory.TRL_LOSS_PATH)
    assert task["backend"] == "unsloth" or "unsloth" not in sys.modules
    return {
        **task,
        "device": str(hardware.detect()),
        "day": date.today().isoformat(),
        "versions": runs.versions(),
        "left_gib": before,
        "tokens_per_s": (points[-1].tokens - points[WARM - 1].tokens) / (points[-1].seconds - points[WARM - 1].seconds),
        "allocated_gib": torch.cuda.max_memory_allocated() / hardware.GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / hardware.GIB,
        "used_gib": (whole - free) / hardware.GIB,
        "estimate": [estimate.low_gib, estimate.likely_gib, estimate.high_gib],
        "adapter_dtype": str(next(p.dtype for n, p in model.named_parameters() if "lora_A" in n)),
        "losses": [point.loss for point in points],
    }


def tasks_of(shape: str, folder: str, backend: str, options: argparse.Namespace) -> list[dict]:
    """Every length with an adapter on all linear layers; the longest on attention alone too, and in fp16 as on a T4."""
    longest = max(options.lengths)
    ways = [("bf16", ALL, length) for length in options.lengths]
    if not options.brief:
        ways += [("bf16", ALL[:4], longest), ("fp16", ALL, longest)]
    common = {"shape": shape, "folder": folder, "backend": backend, "steps": options.steps, "batch": options.batch}
    return [{**common, "dtype": dtype, "targets": targets, "length": length} for dtype, targets, length in ways]


def in_a_process(tasks: list[dict]) -> Iterator[dict]:
    """What each task measured, as it comes; ends early, with the end of what was said, where one fails."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--tasks", json.dumps(tasks)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = []
    for line in process.stdout:
        if line.startswith('{"shape"'):
            yield json.loads(line)
        else:
            said.append(line)
    if process.wait():
        print("".join(said[-25:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["meta-llama/Llama-3.2-1B"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--brief", action="store_true", help="all linear layers in bf16 alone")
    parser.add_argument("--root", type=Path, default=None, help="where random models are kept, such as /dev/shm")
    parser.add_argument("--out", type=Path, default=None, help="JSON of every result")
    parser.add_argument("--tasks", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tasks:
        for task in json.loads(options.tasks):
            print(json.dumps(run(task)), flush=True)
    elif options.write:
        write_model(options.write[0], Path(options.write[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(options, options.root or Path(folder))


def measure(options: argparse.Namespace, root: Path) -> None:
    """Run everything, a line each, and sum up."""
    results: list[dict] = []
    print(FORMAT.format(*HEAD))
    for shape in options.shapes:
        folder = root / shape.replace("/", "--")
        if not (folder / "tokenizer_config.json").exists():
            subprocess.run([sys.executable, __file__, "--write", shape, str(folder)], check=True)
        for backend in ("transformers", "unsloth"):
            for found in in_a_process(tasks_of(shape, str(folder), backend, options)):
                results.append(found)
                print(as_line(found), flush=True)
                if options.out:
                    options.out.write_text(json.dumps(results))
    summary(results)


def as_line(found: dict) -> str:
    """One result as a row of the table."""
    where = "all linear" if len(found["targets"]) > 4 else "attention"
    gib = [f"{found[name]:.2f}" for name in ("allocated_gib", "reserved_gib", "used_gib")]
    ends = " · ".join(f"{end:.2f}" for end in found["estimate"])
    return FORMAT.format(
        found["shape"],
        found["backend"],
        found["dtype"],
        where,
        found["length"],
        f"{found['tokens_per_s']:.0f}",
        *gib,
        ends,
    )


def summary(results: list[dict]) -> None:
    """Unsloth over plain for each pair, and how far the estimates lie off."""
    by_way: dict[tuple, dict] = {}
    for found in results:
        way = (found["shape"], found["dtype"], len(found["targets"]), found["length"])
        by_way.setdefault(way, {})[found["backend"]] = found
    for (shape, dtype, targets, length), pair in by_way.items():
        if len(pair) == 2:
            plain, fast = pair["transformers"], pair["unsloth"]
            apart = max(abs(a - b) / a for a, b in zip(plain["losses"], fast["losses"], strict=True))
            speed = fast["tokens_per_s"] / plain["tokens_per_s"]
            less = fast["allocated_gib"] / plain["allocated_gib"]
            print(
                f"{shape}, {dtype}, {targets} matrices, {length} tokens: Unsloth has {speed:.2f} times the speed, "
                f"{less:.2f} times the memory; losses differ by at most {apart:.1%}"
            )
    if results:
        errors = [abs(found["estimate"][1] / found["allocated_gib"] - 1) for found in results]
        covered = sum(found["estimate"][2] >= found["used_gib"] for found in results)
        print(
            f"estimate: mean error {statistics.mean(errors):.1%}, largest {max(errors):.1%}; its high end is not below "
            f"what lay on the card in {covered} of {len(results)}"
        )
        print(results[0]["device"], results[0]["day"], results[0]["versions"])


if __name__ == "__main__":
    main()
