"""Short trainings between two cells: the same rows for all, the base model left as it was."""

import pytest

from ftkit import chat, lessons
from ftkit.lessons import short_runs
from ftkit.lessons.short_runs import Variants, answer_loss


@pytest.fixture
def token_rows(rows, tokenizer):
    return lessons.tokens(rows, tokenizer)


@pytest.fixture
def adapted(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )


def test_tokens_mask_the_prompt(rows, tokenizer):
    (row,) = lessons.tokens(rows[:1], tokenizer)
    assert row == chat.tokenize(rows[0], tokenizer)
    assert row["labels"][0] == chat.IGNORED


def test_batches_add_up_by_tokens_and_not_by_means(model, token_rows):
    by_tokens, by_batches = lessons.accumulated_loss(model, token_rows, 1)
    assert by_tokens == pytest.approx(lessons.mean_loss(model, token_rows), rel=1e-6)
    per_row = lessons.row_losses(model, token_rows)
    assert by_batches == pytest.approx(sum(per_row) / len(per_row), rel=1e-6)


def test_fit_learns_and_returns_the_loss_before_each_update(adapted, token_rows):
    losses = lessons.fit(adapted, token_rows, steps=6, learning_rate=1e-2)
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_fit_learns_in_fp16(model, token_rows):
    """As on a T4: the adapter is fp32, and gradients that fp16 cannot hold are scaled up on their way."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model.half(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    losses = lessons.fit(adapted, token_rows, steps=6, learning_rate=1e-2)
    assert losses[-1] < losses[0]


def test_first_loss_is_that_of_the_untrained_model(adapted, token_rows):
    wanted = float(answer_loss(adapted, token_rows[:2]).detach())
    assert lessons.fit(adapted, token_rows, steps=1, learning_rate=1e-2) == [pytest.approx(wanted, rel=1e-5)]


def test_rows_come_in_the_same_order_and_round_again(adapted, token_rows, monkeypatch):
    seen = []
    monkeypatch.setattr(
        short_runs,
        "answer_loss",
        lambda model, picked: (
            seen.append([token_rows.index(r) for r in picked])
            or sum(p.float().sum() for p in model.parameters() if p.requires_grad)
        ),
    )
    lessons.fit(adapted, token_rows[:3], steps=3, learning_rate=0.0)
    assert seen == [[0, 1], [2, 0], [1, 2]]


def test_a_layer_is_trained_in_full_and_frozen_again(model, token_rows):
    """Everything else stays as it was, without being asked to."""
    layer, other = model.model.layers[0].mlp.up_proj, model.model.layers[1].mlp.up_proj
    before, untouched = layer.weight.clone(), other.weight.clone()
    lessons.fit(model, token_rows, steps=1, learning_rate=1e-2, full=layer)
    assert not before.equal(layer.weight)
    assert untouched.equal(other.weight)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_full_update_is_what_changed_and_leaves_the_model(model, token_rows):
    """Added again, it gives the loss of the trained model."""
    layer = model.model.layers[0].mlp.up_proj
    before, untrained = layer.weight.clone(), lessons.mean_loss(model, token_rows)
    update = lessons.full_update(model, layer, token_rows, steps=3, learning_rate=1e-2)
    assert layer.weight.equal(before)
    assert lessons.loss_with(model, layer, update, token_rows) < untrained
    assert lessons.mean_loss(model, token_rows) == untrained


def test_an_update_by_lora_has_its_rank_and_leaves_the_model(model, token_rows):
    import torch

    untrained = lessons.mean_loss(model, token_rows)
    how = {"r": 2, "alpha": 4, "steps": 3, "learning_rate": 1e-2}
    update = lessons.lora_update(model, "model.layers.0.mlp.up_proj", token_rows, **how)
    assert torch.linalg.matrix_rank(update) == 2
    assert lessons.mean_loss(model, token_rows) == untrained
    assert not hasattr(model.model.layers[0].mlp.up_proj, "lora_A")


@pytest.mark.parametrize("longest", [256, 1])
def test_fit_suits_the_attention_to_short_rows_and_takes_it_back(adapted, token_rows, monkeypatch, longest):
    """A lesson need not mind: on a CPU plain attention is faster for short rows, and longer ones keep the fused."""
    before, seen = adapted.config._attn_implementation, []
    loss = short_runs.answer_loss
    monkeypatch.setattr("ftkit.models.loading._PLAIN_ATTENTION_TOKENS", longest)
    monkeypatch.setattr(
        short_runs,
        "answer_loss",
        lambda model, picked: seen.append(model.config._attn_implementation) or loss(model, picked),
    )
    lessons.fit(adapted, token_rows, steps=1, learning_rate=1e-3)
    assert seen == ["eager" if longest == 256 else before]
    assert adapted.config._attn_implementation == before


@pytest.mark.parametrize("measure", [lessons.mean_loss, lessons.row_losses])
def test_measuring_leaves_four_bits_trainable(model, token_rows, measure):
    """Left alone, bitsandbytes repacks them for inference at the first look."""
    layer = model.model.layers[0].mlp.up_proj
    layer.support_avx512bf16_for_cpu = True
    measure(model, token_rows[:1])
    assert layer.support_avx512bf16_for_cpu is False


def test_compare_leaves_the_base_as_it_was(model, token_rows):
    before = lessons.mean_loss(model, token_rows)
    lessons.compare_variants(
        model, {"q": {"r": 2, "target_modules": ["q_proj"]}}, token_rows, token_rows, steps=2, learning_rate=1e-2
    )
    assert lessons.mean_loss(model, token_rows) == before


def test_compare_starts_every_variant_at_the_base(model, token_rows):
    """B is zero: the first loss is the base model's, whatever the rank."""
    variants = {name: {"r": r, "target_modules": ["q_proj"]} for name, r in {"two": 2, "eight": 8}.items()}
    losses, table = lessons.compare_variants(model, variants, token_rows, token_rows, steps=2, learning_rate=1e-2)
    assert losses["two"][0] == losses["eight"][0]
    assert table["eight"].parameters == 4 * table["two"].parameters
    assert table["two"].last_loss == losses["two"][-1]


def test_compare_is_the_same_twice(model, token_rows):
    variants = {"q": {"r": 2, "target_modules": ["q_proj"]}}
    first, second = (
        lessons.compare_variants(model, variants, token_rows, token_rows, steps=2, learning_rate=1e-2, seed=3)[0]
        for _ in range(2)
    )
    assert first == second


def test_a_variant_may_set_its_rate(model, token_rows):
    """Rates are compared like any other setting: at rate 0 nothing is learnt."""
    variants = {rate: {"r": 2, "target_modules": ["q_proj"], "learning_rate": rate} for rate in (0.0, 1e-2)}
    _, table = lessons.compare_variants(model, variants, token_rows, token_rows, steps=2, learning_rate=1.0)
    assert table[0.0].held_out_loss == pytest.approx(lessons.mean_loss(model, token_rows))
    assert table[1e-2].held_out_loss < table[0.0].held_out_loss


def test_a_variant_may_set_alpha_itself(model, token_rows):
    """`alpha` is only what a variant gets that says nothing of it."""
    variants = {"loud": {"r": 2, "lora_alpha": 64, "target_modules": ["q_proj"]}}
    lessons.compare_variants(model, variants, token_rows, token_rows, steps=1, learning_rate=1e-2)


def test_variants_show_themselves(model, token_rows):
    table = lessons.compare_variants(
        model, {"q <1>": {"r": 2, "target_modules": ["q_proj"]}}, token_rows, token_rows, steps=1, learning_rate=1e-3
    )[1]
    assert str(table).splitlines()[1].startswith("q <1>")
    assert "q &lt;1&gt;" in table._repr_html_()
    assert table.facts()[0]["name"] == "q <1>"


def test_an_unknown_variant_is_named(model):
    with pytest.raises(KeyError, match="no variant 'x'"):
        Variants(())["x"]


def test_rows_are_compared_from_the_same_start(model, token_rows):
    """The same rows under two names make the same adapter; the base is left as it was."""
    before = lessons.row_losses(model, token_rows)
    parts = {"one": token_rows, "other": token_rows}
    losses = lessons.compare_rows(model, parts, token_rows, steps=2, learning_rate=1e-2, r=2)
    assert list(losses) == ["untrained", "one", "other"]
    assert losses["one"] == losses["other"] != losses["untrained"]
    assert losses["untrained"] == before == lessons.row_losses(model, token_rows)


def test_mean_loss_weighs_tokens_and_row_losses_rows(model, token_rows):
    """A long answer counts more in the mean over tokens."""
    counts = [sum(label != chat.IGNORED for label in row["labels"][1:]) for row in token_rows]
    per_row = lessons.row_losses(model, token_rows)
    wanted = sum(n * loss for n, loss in zip(counts, per_row, strict=True)) / sum(counts)
    assert lessons.mean_loss(model, token_rows) == pytest.approx(wanted, rel=1e-6)


def test_mean_loss_of_the_batch_is_the_training_loss(model, token_rows):
    assert lessons.mean_loss(model, token_rows) == pytest.approx(
        float(answer_loss(model, token_rows).detach()), rel=1e-4
    )


def test_logits_leave_the_mode_and_need_no_gradient(model, tokenizer):
    model.train()
    logits = lessons.logits(model, tokenizer, "What is 1?")
    assert logits.shape[0] == 1
    assert logits.shape[2] == len(tokenizer)
    assert not logits.requires_grad
    assert model.training


def test_plain_weight_is_a_copy_without_the_adapter(adapted):
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    weight = lessons.plain_weight(layer)
    assert weight.equal(layer.base_layer.weight.float())
    weight.zero_()
    assert layer.base_layer.weight.abs().sum() > 0


def test_plain_weight_unpacks_four_bits():
    """Every unpacked weight is one of the sixteen levels times its block's scale."""
    import bitsandbytes as bnb
    import torch

    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(32, 64), quant_type="nf4", requires_grad=False).to("cpu")
    weight = lessons.plain_weight(layer)
    assert weight.shape == (32, 64)
    assert len(weight[0].unique()) <= 16
