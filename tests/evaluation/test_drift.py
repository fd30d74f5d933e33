"""What the adapter did to general text: the loss per token, off and on, against a loss computed by hand."""

import math

import pytest
import torch

from ftkit import chat, data, evaluation, models
from ftkit.config import TrainConfig
from ftkit.errors import DataError, ModelError
from ftkit.evaluation.drift import Forgetting, TextLoss, _change

TEXTS = ["Bread rises.", "A river is young in the mountains, where it falls quickly.", "Tea was dear."]


@pytest.fixture
def adapted(model):
    """A model whose adapter does something."""
    config = TrainConfig(
        backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, lora_r=4
    )
    adapted = models.add_lora(model, config)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return adapted.eval()


def by_hand(model, ids, labels):
    """Mean of -log p(token | those before it) over the labelled tokens, one by one."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    losses = [
        -math.log(float(torch.softmax(logits[i - 1], dim=0)[token]))  # position i - 1 predicts token i
        for i, token in enumerate(ids)
        if i > 0 and labels[i] != chat.IGNORED
    ]
    return sum(losses) / len(losses), len(losses)


def test_the_loss_is_the_one_computed_by_hand(adapted, tokenizer):
    report = evaluation.forgetting(adapted, tokenizer, TEXTS, batch_size=2)
    for text, told in zip(TEXTS, report.texts, strict=True):
        ids = tokenizer(text)["input_ids"]
        on, count = by_hand(adapted, ids, ids)
        with adapted.disable_adapter():
            off, _ = by_hand(adapted, ids, ids)
        assert (told.off, told.on) == (pytest.approx(off, rel=1e-4), pytest.approx(on, rel=1e-4))
        assert told.tokens == count == len(ids) - 1
    assert report.on != pytest.approx(report.off, rel=1e-3)


def test_of_examples_the_answers_count(adapted, tokenizer, rows):
    examples = data.load_examples(rows[:3])
    report = evaluation.forgetting(adapted, tokenizer, examples)
    for example, told in zip(examples, report.texts, strict=True):
        row = chat.tokenize(example, tokenizer)
        on, count = by_hand(adapted, row["input_ids"], row["labels"])
        assert (told.on, told.tokens) == (pytest.approx(on, rel=1e-4), count)
        assert told.text == example["messages"][-1]["content"]


def test_the_change_weighs_tokens_and_its_interval_counts_texts(adapted, tokenizer):
    report = evaluation.forgetting(adapted, tokenizer, TEXTS)
    total = sum(text.tokens for text in report.texts)
    assert report.change.value == pytest.approx(sum(t.change * t.tokens for t in report.texts) / total)
    assert report.change.value == pytest.approx(report.on - report.off)
    assert report.change.low < report.change.value < report.change.high


def test_an_adapter_that_does_nothing_changed_nothing(model, tokenizer):
    config = TrainConfig(backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False)
    report = evaluation.forgetting(models.add_lora(model, config), tokenizer, TEXTS)
    assert (report.change.value, report.change.low, report.change.high) == (0, 0, 0)
    assert not report.forgot
    assert "No change can be told" in str(report)


def test_one_text_tells_nothing():
    change = _change([TextLoss("a", 10, 1.0, 2.0)])
    assert (change.value, change.low, change.high) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("on", "said"), [((1.5, 1.6), "less likely"), ((0.5, 0.4), "likelier"), ((1.5, 0.5), "No change")]
)
def test_the_verdict_is_plain(on, said):
    texts = tuple(TextLoss("a", 10, 1.0, after) for after in on for _ in range(5))
    told = evaluation.drift.Forgetting(1.0, sum(t.on for t in texts) / 10, _change(texts), texts)
    assert said in told.verdict()


def test_the_bundled_passages_are_measured_by_default(adapted, tokenizer):
    report = evaluation.forgetting(adapted, tokenizer, max_length=16)
    assert len(report.texts) == len(data.load_examples("passages")) >= 20
    assert all(text.tokens == 15 for text in report.texts)
    assert "The 10 that changed most are shown." in str(report)


def test_the_adapter_is_on_again_afterwards(adapted, tokenizer):
    first = evaluation.forgetting(adapted, tokenizer, TEXTS)
    assert evaluation.forgetting(adapted, tokenizer, TEXTS) == first


def test_a_model_without_an_adapter_is_refused(model, tokenizer):
    with pytest.raises(ModelError, match=r"without merge=True"):
        evaluation.forgetting(model, tokenizer, TEXTS)


@pytest.mark.parametrize(
    ("texts", "said"), [([], "no texts"), (["fine text", ""], "Text 2"), ([""], "Text 1"), ("", "Text 1")]
)
def test_odd_texts_are_refused(adapted, tokenizer, texts, said):
    with pytest.raises(DataError, match=said):
        evaluation.forgetting(adapted, tokenizer, texts)


def test_a_damaged_adapter_is_told(adapted, tokenizer):
    with torch.no_grad():
        next(w for n, w in adapted.named_parameters() if "lora_B" in n).fill_(math.nan)
    with pytest.raises(DataError, match=r"no number.*adapter"):
        evaluation.forgetting(adapted, tokenizer, TEXTS)


def forgot(*ons, off=2.0):
    texts = tuple(TextLoss(f"text {number}", 10, off, on) for number, on in enumerate(ons))
    return Forgetting(off, sum(ons) / len(ons), _change(texts), texts)


def test_two_adapters_are_compared_text_by_text():
    """What the texts share cancels: adapters apart by a constant are told apart, however much the texts scatter."""
    harsh, gentle = forgot(3.0, 5.0, 9.0), forgot(2.5, 4.5, 8.5)
    effect = gentle.against(harsh)
    assert (effect.value, effect.low, effect.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert harsh.against(gentle).value == pytest.approx(0.5)


def test_adapters_that_were_measured_on_other_texts_are_not_compared():
    with pytest.raises(DataError, match="other texts or another base"):
        forgot(3.0, 5.0).against(forgot(3.0, 5.0, 9.0))
    with pytest.raises(DataError, match="other texts or another base"):
        forgot(3.0, 5.0).against(forgot(3.0, 5.0, off=1.0))
