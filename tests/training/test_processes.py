"""Two processes that torchrun starts, over gloo: the curve of one, one writer, and a kill that loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import make_model, make_tokenizer

from ftkit import data, training
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, TrainingError
from ftkit.runs import Run
from ftkit.training import History, processes, train
from ftkit.training.checkpoints import newest

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")

# Trains one job after another, each a name with settings; process 1 notes what it writes during a training.
WORKER = """
import json, os, signal, sys, threading, time; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_processes import config_of, parts
from toys import make_model, make_tokenizer
from ftkit.errors import FtkitError
from ftkit.hardware import launch
from ftkit.runs import Run
from ftkit.training import train
written, root, jobs = [], Path(sys.argv[1]), json.loads(sys.argv[2])
trains = threading.Event()

def note(event, given):
    "Paths that are opened for writing, made, moved or removed."
    flags = given[2] if event == "open" and isinstance(given[2], int) else 0
    changes = event in ("os.rename", "os.remove", "os.rmdir") or (event == "os.mkdir" and not os.path.exists(given[0]))
    if trains.is_set() and (changes or flags & (os.O_WRONLY | os.O_RDWR)):
        if str(given[0]).startswith(str(root)):
            written.append(f"{{event}} {{given[0]}}")

def die(place):
    "As soon as a checkpoint stands there."
    while not place.exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if launch().rank == 1:
    sys.addaudithook(note)
for name, settings in jobs:
    dies = settings.pop("dies_at", None)
    run = Run.create(name, root)
    if dies and launch().rank == 1:
        place = run / f"checkpoints/checkpoint-{{dies}}"
        threading.Thread(target=die, args=(place,), daemon=True).start()
    trains.set()
    try:
        train(make_model(), make_tokenizer(), parts(), config_of(**settings), run)
    except FtkitError as error:
        print(f"process {{launch().rank}}: {{type(error).__name__}}: {{error}}", flush=True)
        if dies:
            sys.exit(1)
    trains.clear()
if launch().rank == 1:
    (root / "written.json").write_text(json.dumps(written))
"""


def parts():
    """Rows that come out even nowhere: not with micro-batches, not with processes, not with validation."""
    rows = [
        {"prompt": f"What is {i}{'?' * (i % 7)}", "completion": f"It is {i}{', yes' * (i % 5)}."} for i in range(29)
    ]
    rows = data.load_examples(rows)
    return data.Splits(rows.select(range(23)), rows.select(range(23, 28)), rows.select(range(28, 29)))


def config_of(**settings):
    """Settings of one process, several passes long; two processes divide the accumulation."""
    usual = {
        "backend": "transformers",
        "load_in_4bit": False,
        "dtype": "fp32",
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "max_steps": 14,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "eval_steps": 5,
        "save_steps": 4,
        "max_length": 128,
    }
    return TrainConfig(**(usual | settings))


def started(command, folder):
    """A module and what it is given, as a process on one thread and without GPUs."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *command], env=environment, cwd=folder, **pipes)


def ended(process):
    """The same once it is over; it is over after four minutes."""
    try:
        out, errors = process.communicate(timeout=240)
    finally:
        process.terminate()  # torchrun ends what it started
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def begin(root, *jobs):
    """Two processes that train these jobs, each with half the accumulation."""
    script = root / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    halved = [(name, settings | {"gradient_accumulation_steps": 2}) for name, settings in jobs]
    return started([*TORCHRUN, str(script), str(root), json.dumps(halved)], root)


def torchrun(root, *jobs):
    return ended(begin(root, *jobs))


VARIANTS = {
    "random": {},
    "grouped": {"group_by_length": True},
    "checkpointing": {"gradient_checkpointing": True, "max_steps": 4},
    "patience": {"early_stopping_patience": 1, "eval_steps": 1, "lora_alpha": 128, "lr_scheduler_type": "constant"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes trained every variant."""
    root = tmp_path_factory.mktemp("two")
    done = torchrun(root, *VARIANTS.items(), ("unfit", {"save_steps": 0, "report_to": "wandb"}))
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    return root, done


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_train_what_one_does_with_twice_the_accumulation(two, tmp_path, variant):
    """Curve, validation and adapter, over passes that end with half a batch."""
    root, _ = two
    alone = train(
        make_model(), make_tokenizer(), parts(), config_of(**VARIANTS[variant]), Run.create("alone", tmp_path)
    )
    together = History.load(root / variant / "history.csv")
    assert [step for step, _ in together.losses] == [step for step, _ in alone.losses]
    assert dict(together.losses) == pytest.approx(dict(alone.losses), abs=1e-3)
    assert dict(together.val_losses) == pytest.approx(dict(alone.val_losses), abs=1e-3)
    facts = Run.open(root / variant).facts["train"]
    assert facts["processes"] == 2
    if variant == "patience":
        own = Run.open(tmp_path / "alone").facts["train"]
        assert (facts["best_step"], facts["stopped_early"]) == (own["best_step"], own["stopped_early"])
        assert own["stopped_early"]


@pytest.mark.slow
def test_the_first_process_alone_writes(two):
    """The other one adds its random state to a checkpoint that is being made, and nothing else."""
    root, _ = two
    written = json.loads((root / "written.json").read_text())
    assert [path for path in written if ".partial" not in path] == []


@pytest.mark.slow
def test_each_process_says_the_same_error(two):
    _, done = two
    for rank in (0, 1):
        assert f"process {rank}: MissingExtra: report_to='wandb'" in done.stdout


GONE = "gloo/pair.cc:537] Connection closed by peer [127.0.0.1]:35231"


def test_a_process_that_is_gone_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = r"Process 0 of 2 waits in vain.*Connection closed.*goes on from the newest checkpoint"
    with pytest.raises(TrainingError, match=said), processes.losses_explained():
        raise RuntimeError(GONE)


@pytest.mark.parametrize(("problem", "size"), [("shapes differ", "2"), (GONE, "1")])
def test_other_errors_come_through_as_they_are(monkeypatch, problem, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(RuntimeError, match=re.escape(problem)) as caught, processes.losses_explained():
        raise RuntimeError(problem)
    assert type(caught.value) is RuntimeError


def test_a_sharded_launch_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"FSDP shards it.*training\.fsdp_qlora"):
        train(make_model(), make_tokenizer(), parts(), config_of(), Run.create("sharded", tmp_path))


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_goes_on_to_the_same_curve(two, tmp_path):
    root, _ = two
    done = torchrun(tmp_path, ("killed", {"dies_at": 8}))
    assert done.returncode != 0
    run = Run.open(tmp_path / "killed")
    reached = newest(run / "checkpoints")
    assert reached is not None
    assert not run.finished("train")
    with pytest.raises(ConfigError, match=r"another number of processes.*\(2 then, 1 now\)"):
        train(make_model(), make_tokenizer(), parts(), config_of(gradient_accumulation_steps=2), run)
    done = torchrun(tmp_path, ("killed", {}))
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = (History.load(folder / "history.csv") for folder in (root / "random", run.path))
    assert [step for step, _ in resumed.losses] == [step for step, _ in whole.losses]
    assert dict(resumed.losses) == pytest.approx(dict(whole.losses), abs=1e-5)
    assert dict(resumed.val_losses) == pytest.approx(dict(whole.val_losses), abs=1e-5)
    assert [training.problem(place) for place in training.all_in(run / "checkpoints")] == [None, None]


@pytest.mark.slow
def test_the_command_line_is_the_same_run_under_a_launcher(tmp_path):
    """Accelerate starts it here: the first process alone speaks, and the batch is told as it is."""
    make_model().save_pretrained(tmp_path / "toy")
    make_tokenizer().save_pretrained(tmp_path / "toy")
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config_of(max_steps=3, gradient_accumulation_steps=2).save(tmp_path / "config.yaml")
    given = ["train", "config.yaml", "--data", "rows.jsonl", "--model", "toy", "--root", "runs", "--name", "mine"]
    done = ended(started([*TORCHRUN, "-m", "ftkit", *given], tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert Run.open(tmp_path / "runs/mine").facts["train"]["processes"] == 2
    assert done.stdout.count("effective batch size 8, 4 in each of 2 processes") == 1
    assert done.stdout.count("run folder") == 1


@pytest.mark.slow
def test_sigterm_stops_both_at_the_same_update_with_a_checkpoint(tmp_path):
    """As when a rented machine is taken away: torchrun hands the signal on, and it comes at two different moments."""
    process = begin(tmp_path, ("stopped", {"max_steps": 2000, "save_steps": 50, "eval_steps": 0}))
    run = Run(tmp_path / "stopped")
    until = time.monotonic() + 120
    while not training.all_in(run / "checkpoints") and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    history, reached = History.load(run / "history.csv"), newest(run / "checkpoints")
    assert reached is not None
    assert reached.name == f"checkpoint-{history.steps}"
    assert history.steps % 50 or history.steps > 50
    assert not run.finished("train")
