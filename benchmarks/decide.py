"""Whether the decision is right: on both bundled tasks with ten seeds, and on approaches that do not differ.

    python benchmarks/decide.py [--seeds 0 1 2] [--tasks invoices handbook] [--root runs/decide]
    python benchmarks/decide.py --against-itself [--repeats 200]

`invoices` asks for a form that training rows show: a fine-tune is right. `handbook` asks for facts that only documents
hold: search is right. Of approaches that are alike one is measured: nearest examples and not fixed ones, a constraint
with examples and not alone, search without a fine-tune. Each seed draws its own test rows, training
order and examples. Answers are kept in the run folders, so a killed benchmark goes on where it was.

Against itself: every answer of every approach is right by the same chance of its prompt. Called different is a repeat
in which the table shows any approach to be better or worse than any other.
"""

import argparse
import time
from typing import Any

import numpy as np

from ftkit import Run, TrainConfig, data, decision, evaluation, hardware
from ftkit.decision import Approach, Decision
from ftkit.evaluation import EvalReport

LINES = r"Products:(\n- [^\n:]{2,40}: [^\n:(]{3,16} \(×[0-9]{1,3}\)){1,8}"
TASKS: dict[str, dict[str, Any]] = {
    "invoices": {
        "right": ("fine_tune",),
        "settings": {
            "answer_format": LINES,
            "task": "Extract all product names, prices and quantities.",
            "normalise": evaluation.exact_words,
            "max_new_tokens": 80,
            "approaches": ["zero_shot", "prompt", "few_shot_nearest", "constrained_few_shot", "fine_tune"],
        },
    },
    "handbook": {
        "right": ("rag",),
        "settings": {
            "documents": "handbook",
            "metric": evaluation.mentions,
            "task": "Answer questions about the Quillmere Seed Library.",
            "groups": "kind",
            "max_new_tokens": 24,
            "passages": 1,  # on training and val rows 52 % against 40 % with three: a small model mixes them up
            "approaches": ["zero_shot", "prompt", "few_shot_nearest", "rag", "fine_tune"],
        },
    },
}


def drawn(task: str, rows: int, seed: int) -> data.Splits:
    """The task's parts in an order of this seed, the test part with `rows` rows at most."""
    parts = data.split(data.load_examples(task), seed=seed)
    train, test = parts.train.shuffle(seed=seed), parts.test.shuffle(seed=seed)
    return data.Splits(train, parts.val, test.select(range(min(rows, len(test)))))


def against_itself(repeats: int) -> None:
    """Print how often approaches that do not differ are called different."""
    print(f"{repeats} repeats; called different in\n")
    for count in (2, 4, 8):
        for prompts in (20, 50, 200):
            for graded in (False, True):
                draw, called = np.random.default_rng(count * prompts + graded), 0
                for _ in range(repeats):
                    chances = draw.beta(2, 2, prompts)
                    found = Decision(tuple(simulated(draw, chances, i, graded) for i in range(count)), "score")
                    called += any(
                        found.shown(one, other)
                        for one in found.approaches
                        for other in found.approaches
                        if one is not other
                    )
                kind = "graded scores" if graded else "right or wrong"
                print(f"{called / repeats:>7.1%}  {count} approaches, {prompts} prompts, {kind}", flush=True)


def simulated(draw: np.random.Generator, chances: np.ndarray, number: int, graded: bool) -> Approach:
    """An approach that answers each prompt by its chance."""
    values = draw.binomial(5, chances) / 5 if graded else (draw.random(len(chances)) < chances).astype(float)
    rows = tuple(
        {"id": str(i), "cluster": str(i), "prompt": "", "expected": [""], "answer": "", "score": value}
        for i, value in enumerate(values.tolist())
    )
    report = EvalReport(f"approach {number}", {"score": evaluation.interval(values.tolist())}, rows)
    return Approach(report.name, report, minutes_per_1000=1.0 + number)


def main() -> None:
    """Print one row a seed, or a repeat's outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rows", type=int, default=50, help="test rows at most")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--curve", type=float, nargs="*", default=[])
    parser.add_argument("--search-minutes", type=float)
    parser.add_argument("--root", default="runs/decide")
    parser.add_argument("--show", action="store_true", help="print each table")
    parser.add_argument("--against-itself", action="store_true")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    if options.against_itself:
        against_itself(options.repeats)
        return
    for task in options.tasks:
        right = 0
        for seed in options.seeds:
            config = TrainConfig.for_hardware(
                hardware.detect(),
                max_steps=options.steps,
                seed=seed,
                learning_rate=1.5e-3,
                warmup_steps=3,
                eval_steps=0,
            )
            began = time.perf_counter()
            found = decision.compare_approaches(
                None,
                drawn(task, options.rows, seed),
                Run.create(f"{task}-{seed}", options.root),
                config=config,
                curve=options.curve,
                search_minutes=options.search_minutes,
                seed=seed,
                **TASKS[task]["settings"],
            )
            chosen = found.chosen.name if found.chosen else "none"
            right += chosen in TASKS[task]["right"]
            scores = ", ".join(f"{one.name} {found.score(one).value:.0%}" for one in found.approaches)
            print(f"{task} seed {seed}: {chosen}, {time.perf_counter() - began:.0f} s ({scores})", flush=True)
            if options.show:
                print(found, flush=True)
        print(f"{task}: right in {right} of {len(options.seeds)} seeds\n", flush=True)


if __name__ == "__main__":
    main()
