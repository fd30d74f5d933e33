"""Toys: a tokenizer and a model small enough to build in milliseconds, real in every other way."""

import json
import os
import signal
from pathlib import Path

from ftkit import data
from ftkit.config import TrainConfig

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import settings
from toys import make_model, make_tokenizer

# The same draws every time, and on a busy machine all the time they need; HYPOTHESIS_PROFILE=default draws anew.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Files of slow tests that take longer than most, in minutes; those of notebooks stand in notebooks/costs.json.
LONG = {"test_kill": 2.5, "test_loading": 1.5, "test_backends": 1.0, "test_loop": 1.0, "test_study": 1.0}

# A shell that starts tests in the background has them ignore Ctrl+C, and what they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The longest files first, so that of two workers none ends alone with one of them (`--no-loadscope-reorder`)."""
    costs = json.loads((Path(__file__).parents[1] / "notebooks/costs.json").read_text())
    minutes = LONG | {f"test_{name}": cost["minutes"] for name, cost in costs.items()}
    items.sort(key=lambda item: -minutes.get(item.path.stem, 0))


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    """A Llama with two layers and random weights, the same every time."""
    return make_model()


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

    return data.split(data.load_examples(rows), val=0.2, test=0.2, seed=0)


@pytest.fixture
def toy_config():
    """Settings under which the toy trains in a second, without Unsloth and 4-bit."""
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
