"""Toys: a tokenizer and a model small enough to build in milliseconds, real in every other way."""

import os
import signal

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from toys import make_tokenizer

# A shell that starts tests in the background has them ignore Ctrl+C, and what they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    """A Llama with two layers and random weights, the same every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=6,
        )
    )


@pytest.fixture
def rows():
    """Eight short chats."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i}?"},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in range(8)
    ]


@pytest.fixture
def splits(rows):
    from ftkit import data

    return data.split(data.load_examples(rows), val=0.2, test=0.2, seed=0)


@pytest.fixture
def toy_config():
    """Settings under which the toy trains in a second, without Unsloth and 4-bit."""
    from ftkit.config import TrainConfig

    return TrainConfig(
        backend="transformers",
        load_in_4bit=False,
        dtype="fp32",
        gradient_checkpointing=False,
        optim="adamw_torch",
        max_steps=4,
        warmup_steps=0,
        learning_rate=1e-2,
        lora_r=4,
        eval_steps=2,
        save_steps=2,
        max_length=256,
    )
