"""What rows and settings become in TRL, an adapter that comes back as it was saved, and a first step as a trial.

Out of memory is found on the longest micro-batch, before training, and leaves no trace in what is trained.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftkit import data, memory, models, preflight
from ftkit.config import TrainConfig
from ftkit.errors import PreflightError
from ftkit.runs import Run
from ftkit.training import train, trainer
from ftkit.training.trainer import (
    build,
    cut,
    forget_embeddings,
    length_batches,
    out_of_memory_explained,
    probe,
    put_back,
    surely_fits,
    tells_something,
)


@pytest.mark.parametrize(("count", "size"), [(17, 4), (16, 4), (3, 8)])
def test_length_batches_are_a_permutation_of_like_lengths(count, size):
    """Each batch holds neighbours in length; only the last may be short; the seed alone decides the order."""
    lengths = [(7 * i) % count for i in range(count)]
    order = length_batches(lengths, size, seed=1)
    assert sorted(order) == list(range(count))
    assert order == length_batches(lengths, size, seed=1)
    full = [order[i : i + size] for i in range(0, count - count % size, size)]
    assert all(max(lengths[i] for i in b) - min(lengths[i] for i in b) < 2 * size for b in full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_adapter_comes_back_as_it_was_saved(model, toy_config, tmp_path, dtype):
    """TRL keeps a QLoRA adapter in bf16; PEFT's own loading would make it fp32, and a resumed run would differ."""
    adapted = models.add_lora(model, toy_config)
    ours = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for number, weight in enumerate(ours.values()):
        weight.data = torch.full_like(weight, 0.1 * (number + 1)).to(dtype)
    adapted.save_pretrained(tmp_path)
    before = {name: p.detach().clone() for name, p in ours.items()}
    for weight in ours.values():
        weight.data.zero_()
    put_back(adapted, tmp_path)
    assert {p.dtype for p in ours.values()} == {dtype}
    assert all(torch.equal(before[name], p) for name, p in ours.items())


@pytest.mark.parametrize(("dtype", "wanted"), [("fp16", torch.float32), ("bf16", torch.bfloat16)])
def test_an_adapter_in_fp16_is_trained_in_fp32(tokenizer, splits, toy_config, tmp_path, dtype, wanted):
    """TRL turns the adapter of a 4-bit model to bf16; the gradient scaler of fp16 cannot unscale that on a GPU."""
    from toys import make_model

    adapted = models.add_lora(make_model(), toy_config)
    adapted.is_loaded_in_4bit = adapted.base_model.model.is_loaded_in_4bit = True
    parts = cut(preflight.tokenize_splits(splits, tokenizer, toy_config), toy_config)
    loop = build(adapted, tokenizer, parts, toy_config.replace(dtype=dtype), Run.create("toy", tmp_path), [])
    assert {p.dtype for p in loop.model.parameters() if p.requires_grad} == {wanted}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_both_number_formats_are_said_and_no_logits_are_kept(model, tokenizer, splits, toy_config, tmp_path, dtype):
    """Where one flag is left out TRL turns bf16 on; logits of the whole validation part would fill the memory."""
    config = toy_config.replace(dtype=dtype)
    parts = cut(preflight.tokenize_splits(splits, tokenizer, config), config)
    told = build(models.add_lora(model, config), tokenizer, parts, config, Run.create("toy", tmp_path), []).args
    assert (told.bf16, told.fp16) == (dtype == "bf16", dtype == "fp16")
    assert told.prediction_loss_only
    assert not told.dataloader_num_workers  # worker processes hang in notebooks


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU keeps TRL's chunks")
def test_on_a_cpu_the_loss_is_taken_in_smaller_chunks_with_the_same_result(
    tokenizer, splits, toy_config, tmp_path, monkeypatch
):
    """Chunks that no answer fills cost a fifth of an update; what is handed to TRL is small, and back afterwards."""
    from toys import make_model
    from trl.trainer import sft_trainer

    seen, patch = [], sft_trainer._patch_chunked_ce_lm_head
    monkeypatch.setattr(
        sft_trainer,
        "_patch_chunked_ce_lm_head",
        lambda model, chunk_size, **more: (seen.append(chunk_size), patch(model, chunk_size, **more)),
    )
    parts = cut(preflight.tokenize_splits(splits, tokenizer, toy_config), toy_config)
    losses = []
    for tokens in (memory.CPU_CHUNK_TOKENS, sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE):
        monkeypatch.setattr(memory, "CPU_CHUNK_TOKENS", tokens)
        adapted = models.add_lora(make_model(), toy_config)
        loop = build(adapted, tokenizer, parts, toy_config, Run.create("toy", tmp_path), [])
        batch = loop.data_collator([dict(row) for row in parts["train"]])
        losses.append(float(loop.compute_loss(loop.model, batch)))
    assert seen == [64, 256]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE == 256


def test_padding_hides_no_stop_token_where_both_are_one(model, tokenizer, splits, toy_config, tmp_path):
    """Labels are padded by position: masked by id, no answer would ever learn to end."""
    tokenizer.pad_token = tokenizer.eos_token
    parts = cut(preflight.tokenize_splits(splits, tokenizer, toy_config), toy_config)
    loop = build(models.add_lora(model, toy_config), tokenizer, parts, toy_config, Run.create("toy", tmp_path), [])
    rows = sorted(parts["train"], key=lambda row: len(row["input_ids"]))
    batch = loop.data_collator([dict(rows[0]), dict(rows[-1])])
    for row, labels in zip((rows[0], rows[-1]), batch["labels"].tolist(), strict=True):
        length = len(row["labels"])
        assert labels[:length] == list(row["labels"])
        assert set(labels[length:]) <= {-100}
        assert row["labels"].count(tokenizer.eos_token_id) == 1


def test_no_embedding_is_kept_for_good(model):
    """Transformers notes every embedding with bitsandbytes' manager for an 8-bit optimiser; nobody takes it out."""
    from bitsandbytes.optim import GlobalOptimManager

    noted = GlobalOptimManager.get_instance().module_weight_config_triple
    GlobalOptimManager.get_instance().register_module_override(
        model.get_input_embeddings(), "weight", {"optim_bits": 32}
    )
    forget_embeddings()
    assert noted == []


def test_a_training_lets_go_of_noted_embeddings(model, tokenizer, splits, toy_config, tmp_path):
    """Were the call left out, what was noted before would still stand there."""
    from bitsandbytes.optim import GlobalOptimManager

    GlobalOptimManager.get_instance().register_module_override(
        model.get_input_embeddings(), "weight", {"optim_bits": 32}
    )
    train(model, tokenizer, splits, toy_config.replace(max_steps=1), Run.create("toy", tmp_path), preflight=False)
    assert GlobalOptimManager.get_instance().module_weight_config_triple == []


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
    """A large GPU saves the second compilation; a small one, and a shape that nobody can estimate, do not."""
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
from toys import make_model, make_tokenizer
from ftkit import data
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import train
import peft, trl.trainer.sft_trainer  # before the limit: libraries take room that differs between machines
rows = [{{"prompt": f"What is {{i}}?", "completion": "x" * (20_000 if i == 17 else 5)}} for i in range(40)]
parts = data.split(data.load_examples(rows), seed={seed})
config = TrainConfig(
    backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, optim="adamw_torch",
    max_steps=200, lora_r=4, max_length=30_000,
)
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
