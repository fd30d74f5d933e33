"""`kill -9` at random moments of a real run: the same call goes on each time, to the end of a run left in peace.

Ten moments with a model of two layers, and a few with the bundled model in 4-bit.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit import training
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import History
from ftkit.training.checkpoints import step_of

pytestmark = pytest.mark.slow
KILLS = 10

# Loads libraries and model once and trains in a child for each line that it reads: a process of its own, killed for
# good, whose model is untouched.
NURSERY = """
import gc, os, sys, traceback; sys.path.insert(0, {tests!r})
from ftkit import data, hardware, models
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import train
{setup}
gc.freeze()  # each training collects garbage: a child would walk through all libraries, and copy their pages
for name in sys.stdin:
    if not (child := os.fork()):
        try:
            train(model, tokenizer, parts, config, Run.create(name.strip(), {root!r}))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

TOY = """
from toys import make_model, make_tokenizer
rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40)]
config = TrainConfig(
    backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, optim="adamw_torch",
    max_steps=150, warmup_steps=0, learning_rate=1e-3, lora_r=4, eval_steps=25, save_steps=2, max_length=128,
    lora_dropout=0.1,
)
parts = data.split(data.load_examples(rows))
model, tokenizer = make_model(), make_tokenizer()
warm = Run.create("warm", sys.argv[1])
train(make_model(), tokenizer, parts, config.replace(max_steps=1), warm)  # what is loaded late is there then
"""

BUNDLED = """
config = TrainConfig.for_hardware(
    hardware.detect(), max_steps=8, warmup_steps=0, learning_rate=1e-3, eval_steps=0, save_steps=1,
    per_device_train_batch_size=1, gradient_accumulation_steps=1, max_eval_examples=1,
    target_modules=("q_proj", "v_proj"),
)
invoices = data.load_examples("invoices")
parts = data.Splits(invoices.select(range(40)), invoices.select(range(40, 42)), invoices.select(range(42, 44)))
parts = parts.shorter_than(230)
model, tokenizer = models.load(models.BUNDLED, config)
"""


class Nursery:
    """Trains a model under a run name, in a child process that can be killed; ended with its context."""

    def __init__(self, setup: str, root: Path) -> None:
        self.root = root
        code = NURSERY.format(tests=str(Path(__file__).parents[1]), root=str(root), setup=setup)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def train(self, name: str, kill_after_s: float | None = None, past: int | None = None) -> int:
        """Exit status of the child; -9 where it was killed, at once or once a checkpoint lies `past` this step."""
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        while past is not None and not any(
            step_of(p) > past for p in training.all_in(self.root / name / "checkpoints")
        ):
            time.sleep(0.01)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline())


def look(run: Run) -> int:
    """What a reader sees after a kill: whole checkpoints, few of them. Gives back the newest one's step."""
    found = training.all_in(run / "checkpoints")
    assert [place.name for place in found if training.problem(place)] == []
    assert len(found) <= 3  # two are kept; a kill may fall between the third's arrival and the first's removal
    assert not run.finished("train")
    return step_of(found[-1]) if found else 0


def compare(run: Run, whole: Run) -> None:
    """The final adapter is equal within 1e-6, and the curve has every step once."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(r / "adapter/adapter_model.safetensors") for r in (run, whole))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) < 1e-6
    steps = TrainConfig.load(whole / "config.yaml").max_steps
    assert [step for step, _ in History.load(run / "history.csv").losses] == list(range(1, steps + 1))
    assert run.facts["train"]["applied_updates"] == steps
    assert len(training.all_in(run / "checkpoints")) == 2


def test_ten_kills_change_nothing(tmp_path):
    """Dropout is on, so that the random state must come back; moments from the first check to the last write."""
    draw, reached = random.Random(1), []
    with Nursery(TOY, tmp_path) as nursery:
        assert nursery.train("whole") == 0
        while len(reached) < KILLS:
            if len(reached) % 2:  # somewhere between the first check and the first steps
                killed = nursery.train("killed", kill_after_s=draw.uniform(0, 1.5))
            else:  # past a new checkpoint, however busy the machine is
                killed = nursery.train("killed", kill_after_s=draw.uniform(0, 0.2), past=max(reached, default=0))
            assert killed == -signal.SIGKILL
            reached.append(look(Run.create("killed", tmp_path)))
        assert nursery.train("killed") == 0
    assert reached == sorted(reached)
    assert len(set(reached)) > KILLS // 3, f"most kills fell before a checkpoint: {reached}"
    print(f"{len(reached)} kills, after which a checkpoint stood at the steps {reached}")
    compare(Run.open(tmp_path / "killed"), Run.open(tmp_path / "whole"))


def test_kills_of_the_bundled_model_in_4_bit_change_nothing(tmp_path):
    """At random moments of an update, a checkpoint after each."""
    draw, reached = random.Random(2), []
    with Nursery(BUNDLED, tmp_path) as nursery:
        assert nursery.train("whole") == 0
        for step in (1, 3):
            assert nursery.train("killed", kill_after_s=draw.uniform(0, 1), past=step) == -signal.SIGKILL
            reached.append(look(Run.open(tmp_path / "killed")))
        assert nursery.train("killed") == 0
    assert all(reach > step for reach, step in zip(reached, (1, 3), strict=True))
    print(f"2 kills, after which a checkpoint stood at the steps {reached}")
    compare(Run.open(tmp_path / "killed"), Run.open(tmp_path / "whole"))
