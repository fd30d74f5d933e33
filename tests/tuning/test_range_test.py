"""The learning-rate range test: it finds the edge, and leaves no trace in the model."""

import math

import pytest
import torch

from ftkit import figures, models, tuning
from ftkit.errors import ConfigError, DataError
from ftkit.tuning import learning_rate_range
from ftkit.tuning.range_test import RateRange


@pytest.fixture
def adapted(model, toy_config):
    return models.add_lora(model, toy_config)


def ramp(losses, blew_up=None):
    rates = [1e-5 * 10 ** (4 * i / (len(losses) - 1)) for i in range(len(losses))]
    return RateRange(tuple(rates), tuple(losses), blew_up)


def test_it_stops_where_the_loss_explodes(adapted, tokenizer, splits, toy_config):
    """With a larger head the toy can be very wrong; as it is, it can only be unsure."""
    adapted.get_output_embeddings().weight.data.mul_(50)
    found = learning_rate_range(adapted, tokenizer, splits.train, toy_config, low=1e-4, high=100.0, steps=30)
    assert found.blew_up == found.rates[-1] < 100.0
    assert len(found.rates) == len(found.losses) < 30


def test_the_model_is_left_as_it_was(adapted, tokenizer, splits, toy_config):
    """Weights bit for bit, gradients, mode, attention, and the random numbers that come next."""
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    attention = adapted.config._attn_implementation
    adapted.eval()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    learning_rate_range(adapted, tokenizer, splits.train, toy_config, low=1e-3, high=1.0, steps=10)
    assert torch.rand(1) == expected
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    assert all(parameter.grad is None for parameter in adapted.parameters())
    assert (adapted.training, adapted.config._attn_implementation) == (False, attention)


def test_the_model_is_left_as_it_was_after_an_error_too(adapted, tokenizer, splits, toy_config, monkeypatch):
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    calls = []

    def fail(losses):
        calls.append(len(losses))
        if len(losses) == 4:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr("ftkit.tuning.range_test._climbed_back", fail)
    with pytest.raises(KeyboardInterrupt):
        learning_rate_range(adapted, tokenizer, splits.train, toy_config, steps=10)
    assert calls == [1, 2, 3, 4]
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_equal_seeds_give_equal_curves(adapted, tokenizer, splits, toy_config):
    config = toy_config.replace(lora_dropout=0.1)
    one, two = (learning_rate_range(adapted, tokenizer, splits.train, config, steps=10) for _ in range(2))
    assert one == two


def test_the_first_loss_does_not_depend_on_how_an_update_is_cut(adapted, tokenizer, splits, toy_config):
    """4x1 and 1x4 are one mean over the update's tokens, also with rows of unlike length."""
    ones, fours = (
        toy_config.replace(per_device_train_batch_size=size, gradient_accumulation_steps=4 // size) for size in (1, 4)
    )
    curves = [
        learning_rate_range(adapted, tokenizer, splits.train, c, low=1e-3, high=1e-1, steps=10) for c in (ones, fours)
    ]
    assert curves[0].losses == pytest.approx(curves[1].losses, rel=1e-4)


def test_the_suggestion_lies_where_the_loss_falls_fastest():
    found = ramp([3.0] * 10 + [2.8, 2.4, 1.6, 1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7])
    assert found.suggestion == found.steepest == pytest.approx(found.rates[12], rel=0.5)
    assert found.zone[0] < found.suggestion <= found.zone[1]


def test_the_suggestion_is_at_most_a_tenth_of_the_blow_up():
    found = ramp([3.0] * 10 + [2.8, 2.4, 1.6, 1.0, 0.8, 0.7, 2.0], blew_up=1e-3)
    assert found.suggestion <= 1e-4
    assert "climbed halfway back at 0.001" in str(found)


def test_a_loss_that_never_fell_suggests_nothing():
    found = ramp([3.0, 3.1, 2.95, 3.0, 3.05, 3.0, 2.9, 3.0, 3.1, 3.0])
    assert (found.suggestion, found.zone) == (None, None)
    assert "did not fall" in found.verdict()


def test_a_loss_that_is_no_number_ends_the_test_and_can_be_drawn():
    found = ramp([3.0, 3.0, 2.5, 2.0, 1.5, math.nan], blew_up=0.1)
    assert "the loss was no number at 0.1" in str(found)
    assert all(math.isfinite(value) for value in found.smoothed)
    tuning.plot_rate_range(found, ax=figures.blank_axes())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low": 0.0}, "low=0.0"),
        ({"low": 1e-1, "high": 1e-3}, "the low one first"),
        ({"high": math.inf}, "high=inf"),
        ({"steps": 3}, "steps=3"),
        ({"steps": 20.0}, "steps=20.0"),
    ],
)
def test_a_ramp_that_is_none_is_refused(adapted, tokenizer, splits, toy_config, settings, said):
    with pytest.raises(ConfigError) as error:
        learning_rate_range(adapted, tokenizer, splits.train, toy_config, **settings)
    assert said in str(error.value)


def test_a_model_without_an_adapter_is_refused(model, tokenizer, splits, toy_config):
    with pytest.raises(ConfigError, match=r"models\.add_lora"):
        learning_rate_range(model, tokenizer, splits.train, toy_config)


def test_rows_without_answers_are_refused(adapted, tokenizer, splits, toy_config):
    with pytest.raises(DataError, match="trained token"):
        learning_rate_range(adapted, tokenizer, splits.train, toy_config.replace(max_length=8))


def test_the_figure_shades_the_zone():
    found = ramp([3.0] * 10 + [2.8, 2.4, 1.6, 1.0, 0.8, 0.7, 2.0], blew_up=1e-1)
    ax = tuning.plot_rate_range(found, ax=figures.blank_axes())
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()][2].startswith("worth trying")
