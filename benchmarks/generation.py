"""Tokens per second of `generate`, one by one and batched, on the same prompts in one run.

python benchmarks/generation.py [--prompts 32]
"""

import argparse
import time

from ftkit import data, hardware, models
from ftkit.config import TrainConfig
from ftkit.models import generate


def main() -> None:
    """Print one row a batch size; every prompt writes exactly 32 tokens, so that only batching differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    machine = hardware.detect()
    model, tokenizer = models.load(
        models.BUNDLED, TrainConfig.for_hardware(machine, load_in_4bit=False, backend="transformers")
    )
    model.generation_config.min_new_tokens = 32
    examples = data.load_examples("invoices", split="test")
    prompts = [data.prompt(examples[i]) for i in range(options.prompts)]
    generate(model, tokenizer, prompts[:2], max_new_tokens=32)
    print(f"{machine}\n{'batch':>5}  {'tokens/s':>8}  {'seconds':>7}")
    base = 0.0
    for size in (1, 8, 32):
        few = prompts[:8] if size == 1 else prompts
        began = time.perf_counter()
        tokens = sum(answer.tokens for answer in generate(model, tokenizer, few, max_new_tokens=32, batch_size=size))
        seconds = time.perf_counter() - began
        base = base or tokens / seconds
        print(f"{size:>5}  {tokens / seconds:>8.1f}  {seconds:>7.1f}   {tokens / seconds / base:.1f} times")


if __name__ == "__main__":
    main()
