"""Seconds that `evaluate` takes for a base model and a tuned one, beside lm-eval's HFLM on the same model and prompts.

    python benchmarks/evaluate.py [--prompts 100] [--tokens 32] [--batch-size 40] [--rounds 3]

Every prompt writes exactly as many tokens, both harnesses answer with the same model object and batch size, and their
turns alternate, so that what else the machine does falls on both. HFLM's turn is its `generate_until` alone; ours is the
whole of `evaluate`, with the scores.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from ftkit import Run, chat, data, evaluation, hardware, models
from ftkit.config import TrainConfig


def hflm(model: Any, tokenizer: Any, prompts: list[Any], tokens: int, batch_size: int) -> Callable[[], list[str]]:
    """Answers by lm-eval's harness, on rendered prompts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    until = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    texts = [chat.render(prompt, tokenizer, add_generation_prompt=True) for prompt in prompts]
    asked = [Instance("generate_until", {}, (text, dict(until)), number) for number, text in enumerate(texts)]
    return lambda: list(harness.generate_until(asked, disable_tqdm=True))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def main() -> None:
    """Print one row a turn, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    machine = hardware.detect()
    examples = data.load_examples("invoices", split="test").select(range(options.prompts))
    prompts = [data.prompt(row) for row in examples]
    in_16bit = TrainConfig.for_hardware(machine, load_in_4bit=False, backend="transformers")
    pair = {
        "base": models.load(models.BUNDLED, in_16bit),
        "tuned": models.load_adapter(Run.sample() / "adapter", merge=True),
    }
    for model, tokenizer in pair.values():
        model.generation_config.min_new_tokens = options.tokens
        models.generate(model, tokenizer, prompts[:2], max_new_tokens=2)
    print(f"{machine}\n{options.prompts} prompts, {options.tokens} new tokens, batches of {options.batch_size}")
    print(f"{'round':>5}  {'model':>5}  {'ftkit, s':>8}  {'HFLM, s':>8}  equal answers")
    spent: dict[str, list[float]] = {"ftkit": [], "HFLM": []}
    for turn in range(options.rounds):
        both = {"ftkit": 0.0, "HFLM": 0.0}
        for name, (model, tokenizer) in pair.items():
            how = {"max_new_tokens": options.tokens, "batch_size": options.batch_size}
            runs: dict[str, Callable[[], Any]] = {
                "ftkit": lambda m=model, t=tokenizer, how=how: evaluation.evaluate(m, t, examples, **how),
                "HFLM": hflm(model, tokenizer, prompts, options.tokens, options.batch_size),
            }
            took: dict[str, tuple[float, Any]] = {}
            for who in list(runs)[:: 1 if turn % 2 == 0 else -1]:
                took[who] = timed(runs[who])
                both[who] += took[who][0]
            ours = [row["answer"] for row in took["ftkit"][1].rows]
            same = sum(a == b for a, b in zip(ours, took["HFLM"][1], strict=True))
            print(f"{turn + 1:>5}  {name:>5}  {took['ftkit'][0]:>8.1f}  {took['HFLM'][0]:>8.1f}  {same}", flush=True)
        for who, seconds in both.items():
            spent[who].append(seconds)
    ours, theirs = (statistics.median(spent[who]) for who in ("ftkit", "HFLM"))
    print(
        f"base and tuned together, median: ftkit {ours:.1f} s, HFLM {theirs:.1f} s: {theirs / ours:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
