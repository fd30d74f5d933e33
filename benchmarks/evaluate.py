"""Seconds that `evaluate` takes for a base model and a tuned one, beside lm-eval's HFLM on the same model and prompts.

    python benchmarks/evaluate.py [--prompts 100] [--tokens 32] [--batch-size 40] [--dtype bf16] [--rounds 3]

Every prompt writes exactly as many tokens, both harnesses answer with the same model object and batch size, and their
turns alternate, so that what else the machine does falls on both. HFLM's turn is its `generate_until` alone; ours is
the whole of `evaluate`, with the scores. Seconds are those of the clock and, in brackets, those of the processor: on
a busy machine the second number is the one to compare.
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


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock and of the processor, and what was run gave."""
    began, busy = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - began, time.process_time() - busy, result


def main() -> None:
    """Print one row a turn, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--dtype", default="bf16", help="bf16, fp16 or fp32: of both models")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    machine = hardware.detect()
    examples = data.load_examples("invoices", split="test").select(range(options.prompts))
    prompts = [data.prompt(row) for row in examples]
    in_16bit = TrainConfig.for_hardware(machine, load_in_4bit=False, backend="transformers", dtype=options.dtype)
    pair = {
        "base": models.load(models.BUNDLED, in_16bit),
        "tuned": models.load_adapter(Run.sample() / "adapter", in_16bit, merge=True),
    }
    for model, tokenizer in pair.values():
        models.generate(model, tokenizer, prompts[:2], max_new_tokens=2)
        model.generation_config.min_new_tokens = options.tokens
    print(
        f"{machine}\n{options.prompts} prompts, {options.tokens} new tokens, batches of {options.batch_size}, "
        f"{torch.get_num_threads()} threads, {evaluation.number_format(pair['base'][0])}"
    )
    print(f"{'round':>5}  {'model':>5}  {'ftkit, s':>15}  {'HFLM, s':>15}  equal answers")
    spent: dict[str, list[tuple[float, float]]] = {"ftkit": [], "HFLM": []}
    for turn in range(options.rounds):
        both = {"ftkit": (0.0, 0.0), "HFLM": (0.0, 0.0)}
        for name, (model, tokenizer) in pair.items():
            how = {"max_new_tokens": options.tokens, "batch_size": options.batch_size}
            runs: dict[str, Callable[[], Any]] = {
                "ftkit": lambda m=model, t=tokenizer, how=how: evaluation.evaluate(m, t, examples, **how),
                "HFLM": hflm(model, tokenizer, prompts, options.tokens, options.batch_size),
            }
            answers: dict[str, Any] = {}
            cells = {}
            for who in list(runs)[:: 1 if turn % 2 == 0 else -1]:
                clock, processor, answers[who] = timed(runs[who])
                both[who] = (both[who][0] + clock, both[who][1] + processor)
                cells[who] = f"{clock:.1f} ({processor:.1f})"
            ours = [row["answer"] for row in answers["ftkit"].rows]
            same = sum(a == b for a, b in zip(ours, answers["HFLM"], strict=True))
            print(f"{turn + 1:>5}  {name:>5}  {cells['ftkit']:>15}  {cells['HFLM']:>15}  {same}", flush=True)
        for who, seconds in both.items():
            spent[who].append(seconds)
    print("base and tuned together, medians:")
    for kind, place in (("clock", 0), ("processor", 1)):
        ours_s, theirs_s = (statistics.median(pair[place] for pair in spent[who]) for who in ("ftkit", "HFLM"))
        print(f"  {kind}: ftkit {ours_s:.1f} s, HFLM {theirs_s:.1f} s: {theirs_s / ours_s:.2f} times as fast")


if __name__ == "__main__":
    main()
