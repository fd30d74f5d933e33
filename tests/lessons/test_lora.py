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


def test_the_table_sums_each_kind_of_matrix_over_the_layers(model):
    """The last row is the whole adapter."""
    layers = lessons.targets(model, SEVEN)
    table = lessons.target_table(layers, 3)
    assert [row[0] for row in table.rows] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "all",
    ]
    assert table.rows[-1][-1] == f"{lessons.adapter_parameters(layers, 3):,}"


def by_hand(x, W, A, B, alpha):  # noqa: N803
    return x @ W.T + alpha / A.shape[0] * (x @ A.T @ B.T)


@pytest.mark.parametrize(("alpha", "equal"), [(16, True), (32, False)])
def test_a_layer_by_hand_equals_pefts_only_with_its_alpha(alpha, equal):
    import torch
    from peft import LoraConfig, get_peft_model

    net = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=False))
    layer = get_peft_model(net, LoraConfig(r=8, lora_alpha=16, target_modules=["0"])).base_model.model[0]
    gaps = lessons.gaps_to_peft(by_hand, layer, alpha)
    assert set(gaps) == {"output", "A's gradient", "B's gradient"}
    assert (max(gaps.values()) < 1e-5) is equal


def test_an_update_of_rank_two_is_held_by_rank_two():
    import torch

    update = torch.randn(20, 2) @ torch.randn(2, 30)
    shares = lessons.rank_shares(torch.linalg.svdvals(update).tolist())
    assert shares[0] == 0
    assert shares[1] < 0.9999
    assert shares[2] == pytest.approx(1, abs=1e-6)
    assert torch.allclose(lessons.truncated(update, 2), update, atol=1e-4)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40))
def test_shares_rise_from_zero_to_one(values):
    """Each further direction can only help (Eckart and Young)."""
    shares = lessons.rank_shares(sorted(values, reverse=True))
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert all(a <= b for a, b in itertools.pairwise(shares))


def test_truncation_keeps_what_the_singular_values_promise():
    import torch

    update = torch.randn(12, 9)
    shares = lessons.rank_shares(torch.linalg.svdvals(update).tolist())
    for r in (1, 4, 8):
        lost = (lessons.truncated(update, r) - update).square().sum() / update.square().sum()
        assert 1 - float(lost) == pytest.approx(shares[r], abs=1e-5)


def test_alpha_moves_a_layer_and_the_step_grows_with_it():
    """One step of Adam moves B by the learning rate whatever alpha is, so the layer moves by alpha / r."""
    assert lessons.step_size(64, 16) == pytest.approx(2 * lessons.step_size(32, 16), rel=0.01)
