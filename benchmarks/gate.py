"""How often the gate raises a false alarm, and how often it finds a real loss: 200 simulated repeats each.

python benchmarks/gate.py [--repeats 200]

Each item of a suite has a chance to be passed of its own (drawn from a Beta distribution: most are nearly always or
nearly never passed), and every answer is drawn anew, as with sampling at a temperature. As `evaluation.suite` does it,
the base is asked once to select the items that it passes and once more for the comparison.
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


def alarm(draw: np.random.Generator, loss: float, *, asked_again: bool, times: int) -> bool:
    """Whether one simulated gate fails; the tuned model loses a share `loss` of what it could pass in `general`."""
    before, after, floor = {}, {}, {}
    for suite, size in SIZES.items():
        chances = draw.beta(4, 1, size * times)
        first = draw.random(len(chances)) < chances
        kept = chances[first]
        again = draw.random(len(kept)) < kept if asked_again else np.ones(len(kept), bool)
        lost = draw.random(len(kept)) < (loss if suite == "general" else 0.0)
        before[suite] = report("base", again)
        after[suite] = report("tuned", (draw.random(len(kept)) < kept) & ~lost)
        floor[suite] = 1 - float(again.mean())
    return not evaluation.gate(before, after, floor=floor).passed


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    cases = [
        ("base against itself", 0.0, True, 1),
        ("base against itself, four times the items", 0.0, True, 4),
        ("base against itself, compared with the answers that selected the items", 0.0, False, 1),
        ("15 points lost in general", 0.15, True, 1),
        ("25 points lost in general", 0.25, True, 1),
        ("40 points lost in general", 0.40, True, 1),
        ("15 points lost in general, four times the items", 0.15, True, 4),
        ("25 points lost in general, four times the items", 0.25, True, 4),
    ]
    print(f"{options.repeats} repeats, {sum(SIZES.values())} items in {len(SIZES)} suites, allowed loss 5 points\n")
    print(f"{'gate fails':>10}  case")
    for seed, (case, loss, asked_again, times) in enumerate(cases):
        draw = np.random.default_rng(seed)
        failed = sum(alarm(draw, loss, asked_again=asked_again, times=times) for _ in range(options.repeats))
        print(f"{failed / options.repeats:>10.1%}  {case}", flush=True)


if __name__ == "__main__":
    main()
