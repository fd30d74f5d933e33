"""Adapter arithmetic: counts follow from shapes, the factor from alpha and rank, errors from singular values."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import lessons
from ftkit.lessons.lora import Target

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def meta_llama(**shape):
    """A Llama of any size without weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**shape))


def test_both_matrices_count():
    assert lessons.adapter_parameters([Target("q_proj", d_in=4096, d_out=1024)], 16) == 16 * (4096 + 1024)


def test_llama_3_1_8b_has_the_published_count():
    model = meta_llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    assert lessons.adapter_parameters(lessons.targets(model, SEVEN), 16) == 41_943_040


def test_the_formula_agrees_with_peft_on_the_toy(model):
    from peft import LoraConfig, get_peft_model

    layers = lessons.targets(model, SEVEN)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=list(SEVEN)))
    assert lessons.adapter_parameters(layers, 3) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_targets_are_found_in_an_adapted_model_once(model):
    """PEFT wraps a layer: the wrapper must not count beside the layer inside."""
    from peft import LoraConfig, get_peft_model

    before = lessons.targets(model, SEVEN)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=list(SEVEN)))
    assert len(lessons.targets(adapted, SEVEN)) == len(before) == 7 * 2


def test_unknown_targets_are_refused(model):
    with pytest.raises(ValueError, match="no layer named w_proj"):
        lessons.targets(model, ["w_proj"])


def test_an_update_of_rank_two_is_held_by_rank_two():
    import torch

    update = torch.randn(20, 2) @ torch.randn(2, 30)
    errors = lessons.rank_errors(torch.linalg.svdvals(update).tolist())
    assert errors[0] == 1
    assert errors[1] > 0.01
    assert errors[2] < 1e-3
    assert torch.allclose(lessons.truncated(update, 2), update, atol=1e-4)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40))
def test_errors_fall_from_one_to_zero(values):
    """Each further direction can only help (Eckart and Young)."""
    errors = lessons.rank_errors(sorted(values, reverse=True))
    assert errors[0] == pytest.approx(1)
    assert errors[-1] == 0
    assert all(a >= b for a, b in itertools.pairwise(errors))


def test_truncation_has_the_error_that_the_singular_values_promise():
    import torch

    update = torch.randn(12, 9)
    errors = lessons.rank_errors(torch.linalg.svdvals(update).tolist())
    for r in (1, 4, 8):
        left = (lessons.truncated(update, r) - update).norm() / update.norm()
        assert float(left) == pytest.approx(errors[r], abs=1e-5)


def test_alpha_moves_a_layer_and_the_step_grows_with_it():
    """One step of Adam moves B by the learning rate whatever alpha is, so the layer moves by alpha / r."""
    assert lessons.step_size(64, 16) == pytest.approx(2 * lessons.step_size(32, 16), rel=0.01)
