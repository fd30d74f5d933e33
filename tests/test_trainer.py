"""What a run's settings become in TRL, and an adapter that comes back in the number format it was saved in."""

import pytest
import torch

from ftkit import models, trainer
from ftkit.errors import MissingExtra


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
    trainer.put_back(adapted, tmp_path)
    assert {p.dtype for p in ours.values()} == {dtype}
    assert all(torch.equal(before[name], p) for name, p in ours.items())


def test_a_reporter_that_is_not_installed_is_named(toy_config):
    with pytest.raises(MissingExtra, match="pip install wandb, or set report_to='none'"):
        trainer.check_reporter(toy_config.replace(report_to="wandb"))
    trainer.check_reporter(toy_config)
