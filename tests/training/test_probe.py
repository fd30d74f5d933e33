"""Out of memory is found on the longest micro-batch, before training, and leaves no trace in what is trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftkit import data
from ftkit.config import TrainConfig
from ftkit.errors import PreflightError
from ftkit.runs import Run
from ftkit.training import train, trainer
from ftkit.training.trainer import longest_batch, out_of_memory_explained, probe, surely_fits, tells_something


def test_the_longest_rows_are_taken_together():
    assert longest_batch([3, 9, 1, 8, 5], 2) == [1, 3]


@pytest.mark.parametrize(
    ("lengths", "device", "told"),
    [
        ([10] * 16, "cuda", False),
        ([10, 11, 12, 11] * 4, "cpu", False),
        ([10] * 15 + [14], "cuda", True),
        ([10] * 15 + [14], "cpu", False),
        ([10] * 15 + [40], "cpu", True),
    ],
)
def test_a_probe_is_made_only_where_the_first_update_would_not_show_as_much(lengths, device, told):
    """On a CPU it has its price, so the longest micro-batch must stand out."""
    assert tells_something(lengths, 4, device) is told


def test_nothing_is_tried_where_twice_the_estimate_fits(model, monkeypatch):
    """A GPU that is large enough saves the second compilation; one that is not, and a shape that nobody can estimate, do not."""
    config = TrainConfig(max_length=64)
    assert surely_fits(model, config, 64, free_gib=20.0)
    assert not surely_fits(model, config, 64, free_gib=0.5)
    monkeypatch.setattr(model.config, "num_local_experts", 8, raising=False)
    assert not surely_fits(model, config, 64, free_gib=20.0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_every_way_of_saying_it_becomes_one_that_says_what_to_change(error):
    config = TrainConfig(
        per_device_train_batch_size=8, gradient_accumulation_steps=1, gradient_checkpointing=False, load_in_4bit=False
    )
    with pytest.raises(PreflightError) as caught, out_of_memory_explained(config, 2048):
        raise error
    said = str(caught.value)
    assert "8 x 2048 tokens" in said
    assert "per_device_train_batch_size=4 with gradient_accumulation_steps=2" in said
    assert all(name in said for name in ("gradient_checkpointing=True", "load_in_4bit=True", "max_length=1024"))


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shape mismatch"), out_of_memory_explained(TrainConfig(), 10):
        raise RuntimeError("shape mismatch")


@pytest.mark.slow
def test_the_training_is_the_same_to_the_last_bit(tokenizer, rows, toy_config, tmp_path, monkeypatch):
    """With dropout, so that the random state would tell."""
    from safetensors.torch import load_file
    from toys import make_model

    uneven = [*rows, {"messages": [rows[2]["messages"][0], {"role": "assistant", "content": "long " * 40}]}]
    parts = data.Splits(*(data.load_examples(part) for part in (uneven[2:], uneven[:1], uneven[1:2])))
    config = toy_config.replace(lora_dropout=0.3)
    weights, probed, look = [], [], probe
    for name, run in (("with", lambda *given: probed.append(look(*given))), ("without", lambda *given: None)):
        monkeypatch.setattr(trainer, "probe", run)
        folder = Run.create(name, tmp_path)
        train(make_model(), tokenizer, parts, config, folder)
        weights.append(load_file(folder / "adapter/adapter_model.safetensors"))
    assert probed == [True]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


SCARCE = """
import resource, sys; sys.path.insert(0, {tests!r})
import torch
from toys import make_model, make_tokenizer
from toys import make_model
from ftkit import data, hardware
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.train import train
import peft, trl.trainer.sft_trainer  # before the limit: libraries take room that differs between machines
rows = [{{"prompt": f"What is {{i}}?", "completion": "x" * (20_000 if i == 17 else 5)}} for i in range(40)]
parts = data.split(data.load_examples(rows), seed={seed})
config = TrainConfig(backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, optim="adamw_torch",
                     max_steps=200, lora_r=4, max_length=30_000)
limit = int(open("/proc/self/statm").read().split()[0]) * 4096 + {spare} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
train(make_model(), make_tokenizer(), parts, config, Run.create("scarce", {root!r}), preflight=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits the memory of a process as Linux does")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernel's limit on a process limits nothing")
def test_a_row_too_long_for_the_memory_is_found_before_the_first_update(tmp_path):
    """The kernel's limit on a process's memory; the long row is one of forty, and might have come hours later."""
    script = SCARCE.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path), spare=500, seed=0)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert "PreflightError: Out of memory on a micro-batch of 2 x 20" in done.stderr, done.stderr[-1500:]
    assert not (tmp_path / "scarce/history.csv").exists()
