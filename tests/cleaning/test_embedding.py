"""Texts to vectors with a causal language model."""

import numpy as np
import pytest

from ftkit.cleaning.embedding import embedder

TEXTS = [
    "the kettle does not switch on",
    "",
    "a",
    "the parcel never came and nobody answers the telephone",
    "the kettle does not switch on",
]


@pytest.fixture
def encode(model, tokenizer):
    return embedder(model, tokenizer, batch_size=2)


def test_one_vector_a_text_in_the_order_given(encode, model):
    vectors = encode(TEXTS)
    assert vectors.shape == (len(TEXTS), model.config.hidden_size)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[0], vectors[4], rtol=1e-5)


def test_padding_changes_nothing(encode):
    """A text has the same vector alone and beside a longer one."""
    together = encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encode([text])[0], vector, rtol=1e-3, atol=1e-4)


def test_the_tokenizers_padding_side_comes_back(model, tokenizer):
    tokenizer.padding_side = "left"
    embedder(model, tokenizer)(["a", "b c"])
    assert tokenizer.padding_side == "left"
