"""Likelihoods come from the logits that are needed, and are those of a whole pass."""

import pytest
import torch

from ftkit import chat
from ftkit.chat import IGNORED
from ftkit.models import answer_logits, answer_nll, padded
from ftkit.models.likelihood import next_token_nll


@pytest.fixture
def token_rows(rows, tokenizer):
    """Two rows of unlike length."""
    short, long = rows[0], {"messages": [rows[1]["messages"][0], {"role": "assistant", "content": "long " * 9}]}
    return [chat.tokenize(short, tokenizer), chat.tokenize(long, tokenizer)]


@pytest.fixture
def asked(model):
    """The number of positions whose logits the head computed, pass by pass."""
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    return seen


def whole(model, ids, mask):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def test_the_head_sees_no_more_than_the_answers(model, token_rows, asked):
    ids, mask = padded([row["input_ids"] for row in token_rows], 0, model.device)
    labels, _ = padded([row["labels"] for row in token_rows], IGNORED, model.device)
    logits, wanted = answer_logits(model, ids, mask, labels)
    kept = (labels[:, 1:] != IGNORED).any(dim=0)
    assert asked == [int(kept.sum())]
    assert asked[0] < ids.shape[1] / 1.2
    assert wanted.equal(labels[:, 1:][:, kept])
    assert torch.allclose(logits, whole(model, ids, mask)[:, :-1][:, kept], atol=1e-5)


def test_a_model_that_gives_all_logits_or_none_is_asked_for_all(model, token_rows, asked, monkeypatch):
    """Not every architecture can leave some out."""
    expected, forward = answer_nll(model, token_rows), model.forward

    def plain(input_ids=None, attention_mask=None):
        return forward(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model, "forward", plain)
    assert [nll for nll, _ in answer_nll(model, token_rows)] == pytest.approx([nll for nll, _ in expected], rel=1e-5)
    assert asked[1] == max(len(row["input_ids"]) for row in token_rows)


def test_the_next_token_is_read_at_the_end_of_each_row(model, token_rows, asked):
    rows = [row["input_ids"] for row in token_rows]
    found = next_token_nll(model, rows, [[3, 5], [4]])
    assert asked == [2]
    for row, tokens, values in zip(rows, [[3, 5], [4]], found, strict=True):
        last = torch.log_softmax(whole(model, torch.tensor([row]), None)[0, -1], dim=-1)
        assert values == pytest.approx((-last[tokens]).tolist(), rel=1e-4)
