"""Toys of this room: a tokenizer of words and an embedder of two layers, in folders as the Hub has them."""

import json

import pytest


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    """A BERT with random weights and a vocabulary of the toy documents, pooled by the mean."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("embedder")
    words = ["[PAD]", "[UNK]", "cats", "purr", "dogs", "bark", "owls", "hoot", "at", "night", "what", "do"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return path


@pytest.fixture
def animals():
    """Three documents that share one word."""
    return [
        {"id": "cats", "text": "cats purr at night"},
        {"id": "dogs", "text": "dogs bark"},
        {"id": "owls", "text": "owls hoot at night"},
    ]
