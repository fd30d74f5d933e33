"""How fast the form answers: from the rank slider's move to every consequence on the panel, on this machine.

python benchmarks/form.py [--moves 200]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

from ftkit import hardware, memory, tuning
from ftkit.config import TrainConfig

LIMIT_MS = 150


def main() -> None:
    """Print median and worst of many moves, with the parts that make them up; exit 1 past the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=200)
    options = parser.parse_args()
    machine = hardware.detect()
    config = TrainConfig.for_hardware(machine)
    with tempfile.TemporaryDirectory() as folder:
        form = tuning.config_form(
            config, model=memory.find("HuggingFaceTB/SmolLM2-135M"), examples=320, run_root=folder
        )
        built = timed(lambda _: form.panel, 1)
        assert form._panel is not None
        rank, rate = (form._panel.rows[name].slider for name in ("lora_r", "learning_rate"))
        parts = {
            "panel built, once": built,
            "rank moved, panel updated": timed(lambda i: setattr(rank, "index", i % len(rank.options)), options.moves),
            "learning rate moved": timed(lambda i: setattr(rate, "index", i % len(rate.options)), options.moves),
            "of these: consequences alone": timed(lambda _: form.consequences, options.moves),
        }
    print(f"{machine}\n{'':30}{'median':>10}{'worst':>10}")
    for name, spent in parts.items():
        print(f"{name:30}{statistics.median(spent):>7.1f} ms{max(spent):>7.1f} ms")
    worst = max(parts["rank moved, panel updated"])
    print(f"limit {LIMIT_MS} ms: {'kept' if worst < LIMIT_MS else 'broken'}")
    raise SystemExit(worst >= LIMIT_MS)


def timed(act: Callable[[int], object], times: int) -> list[float]:
    """Milliseconds of each of `times` calls."""
    spent = []
    for i in range(times):
        began = time.perf_counter()
        act(i + 1)
        spent.append(1000 * (time.perf_counter() - began))
    return spent


if __name__ == "__main__":
    main()
