"""Banners stay away from a page; what costs a reader rows or settings does not."""

import logging

import pytest

from ftkit.models import quietly

LOGGER = "transformers.models.llama.modeling_llama"


@pytest.mark.parametrize(
    ("said", "level", "seen"),
    [
        ("Unsloth 2026.10.9 patched 30 layers with 30 QKV layers.", logging.WARNING, False),
        ("Not an error, but Unsloth cannot patch MLP layers with our manual autograd engine", logging.WARNING, False),
        (
            "Unsloth: Input IDs of shape (1, 9000) > the model's max sequence length. We shall truncate it ourselves.",
            logging.WARNING,
            True,
        ),
        ("Unsloth: Could not apply RoPE scaling 'x' from config", logging.WARNING, True),
        ("Unsloth: bias = `none` is supported for fast patching. You are using dropout = 0.1.", logging.WARNING, True),
        ("Unsloth: out of order", logging.ERROR, True),
        ("Somebody else warns", logging.WARNING, True),
    ],
)
def test_chatter_is_hidden_and_losses_are_not(caplog, monkeypatch, said, level, seen):
    """Also after the block, while a model trains."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with quietly():
        pass
    logging.getLogger(LOGGER).log(level, said)
    assert (said in caplog.messages) is seen
