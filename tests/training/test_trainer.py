"""What a run's settings become in TRL, and an adapter that comes back in the number format it was saved in."""

import pytest
import torch

from ftkit import models
from ftkit.errors import MissingExtra
from ftkit.runs import Run
from ftkit.training import train
from ftkit.training.trainer import build, check_reporter, cut, forget_embeddings, put_back, read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_adapter_comes_back_as_it_was_saved(model, toy_config, tmp_path, dtype):
    """TRL keeps a QLoRA adapter in bf16; PEFT's own loading would make it fp32, and a resumed run would take other steps."""
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


def test_a_reporter_that_is_not_installed_is_named(toy_config):
    with pytest.raises(MissingExtra, match="pip install wandb, or set report_to='none'"):
        check_reporter(toy_config.replace(report_to="wandb"))
    check_reporter(toy_config)


@pytest.mark.parametrize(("dtype", "wanted"), [("fp16", torch.float32), ("bf16", torch.bfloat16)])
def test_an_adapter_in_fp16_is_trained_in_fp32(tokenizer, splits, toy_config, tmp_path, dtype, wanted):
    """TRL turns the adapter of a 4-bit model to bf16; the gradient scaler of fp16 cannot unscale that on a GPU."""
    from toys import make_model

    adapted = models.add_lora(make_model(), toy_config)
    adapted.is_loaded_in_4bit = adapted.base_model.model.is_loaded_in_4bit = True
    rows = {"train": cut("train", read("train", splits.train, tokenizer), 256)}
    rows["val"] = rows["train"]
    loop = build(adapted, tokenizer, rows, toy_config.replace(dtype=dtype), Run.create("toy", tmp_path), [])
    assert {p.dtype for p in loop.model.parameters() if p.requires_grad} == {wanted}


def test_no_embedding_is_kept_for_good(model):
    """Transformers notes every embedding with bitsandbytes' manager when it makes an 8-bit optimiser, and nobody takes it out."""
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
