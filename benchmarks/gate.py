"""How often the gate raises a false alarm, and how often it finds a real loss: 200 simulated repeats each.

python benchmarks/gate.py [--repeats 200]

Drawn: every answer is drawn anew, as with sampling at a temperature, and each item has a chance of its own to be passed
(Beta(4, 1): on average four of five). Greedy: the base passes an item always or never. As `evaluation.suite` does it,
the base is asked once to select the items that it passes, and again for the comparison.
"""

import argparse

import numpy as np

from ftkit import evaluation
from ftkit.evaluation import EvalReport

SIZES = {"general": 98, "json_skill": 24, "tool_skill": 16, "harmless": 24, "harmful": 24}


def report(name: str, passed: np.ndarray) -> EvalReport:
    """A report of passes and failures."""
    rows = tuple(
        {"id": str(i), "cluster": str(i), "prompt": "", "expected": [""], "answer": "", "passed": float(hit)}
        for i, hit in enumerate(passed)
    )
    return EvalReport(name, {"passed": evaluation.interval([row["passed"] for row in rows])}, rows)


def alarm(draw: np.random.Generator, loss: float, *, greedy: bool = False, again: int = 1, times: int = 1) -> bool:
    """Whether one simulated gate fails; the tuned model loses a share `loss` of what it could pass in `general`.

    With `again=0` the tuned model is compared with the answers that selected the items.
    """
    before, after, floor = {}, {}, {}
    for suite, size in SIZES.items():
        chances = draw.beta(4, 1, size * times)
        if greedy:
            chances = (draw.random(len(chances)) < chances).astype(float)
        kept = chances[draw.random(len(chances)) < chances]
        asked = [draw.random(len(kept)) < kept for _ in range(again)] or [np.ones(len(kept), bool)]
        means = [float(answers.mean()) for answers in asked] + [1.0] * (again == 1)
        lost = draw.random(len(kept)) < (loss if suite == "general" else 0.0)
        before[suite] = report("base", asked[0])
        after[suite] = report("tuned", (draw.random(len(kept)) < kept) & ~lost)
        floor[suite] = max(means) - min(means)
    return not evaluation.gate(before, after, floor=floor).passed


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    cases = [
        ("base against itself, drawn", 0.0, {}),
        ("base against itself, drawn, asked again twice", 0.0, {"again": 2}),
        ("base against itself, drawn, four times the items", 0.0, {"times": 4}),
        ("base against itself, drawn, four times the items, asked again twice", 0.0, {"times": 4, "again": 2}),
        ("base against the answers that selected its items, drawn: never do this", 0.0, {"again": 0}),
        ("base against itself, greedy", 0.0, {"greedy": True}),
        ("10 points lost in general, greedy", 0.10, {"greedy": True}),
        ("15 points lost in general, greedy", 0.15, {"greedy": True}),
        ("15 points lost in general, drawn, asked again twice", 0.15, {"again": 2}),
        ("25 points lost in general, drawn, asked again twice", 0.25, {"again": 2}),
        ("25 points lost in general, drawn", 0.25, {}),
        ("15 points lost in general, drawn, four times the items, asked again twice", 0.15, {"times": 4, "again": 2}),
    ]
    print(f"{options.repeats} repeats, {sum(SIZES.values())} items in {len(SIZES)} suites, allowed loss 5 points\n")
    worst = evaluation.detectable_loss(round(0.8 * SIZES["general"]), 0.05, 0.05 / len(SIZES))
    print(f"smallest loss in general found in four of five repeats, greedy: {worst:.1%}\n")
    print(f"{'gate fails':>10}  case")
    for seed, (case, loss, how) in enumerate(cases):
        draw = np.random.default_rng(seed)
        failed = sum(alarm(draw, loss, **how) for _ in range(options.repeats))
        print(f"{failed / options.repeats:>10.1%}  {case}", flush=True)


if __name__ == "__main__":
    main()
