"""A healthy set-up, and a check of it with whatever a test breaks."""

import dataclasses

import pytest
from toys import CPU, dataset_of, order_chat

from ftkit import data, preflight
from ftkit.config import TrainConfig


@pytest.fixture
def config():
    return TrainConfig(
        backend="transformers",
        load_in_4bit=False,
        dtype="fp32",
        gradient_checkpointing=False,
        optim="adamw_torch",
        lora_r=8,
        lora_alpha=16,
        max_steps=12,
        warmup_steps=2,
        eval_steps=4,
        save_steps=4,
        max_length=512,
    )


@pytest.fixture
def good():
    """Thirty-two training chats, four for validation, four for the test."""
    return data.Splits(*(dataset_of(map(order_chat, part)) for part in (range(32), range(32, 36), range(36, 40))))


@pytest.fixture
def look(model, tokenizer, config, good):
    """`preflight.check` on the healthy set-up, with whatever a test breaks; `tokenized` replaces training rows."""

    def checked(*, chats=None, settings=None, tokenized=None, **broken):
        examples = good if chats is None else data.Splits(dataset_of(chats), good.val, good.test)
        changed = config.replace(**(settings or {}))
        arguments = {"model": model, "tokenizer": tokenizer, "examples": examples, "hardware": CPU, **broken}
        if tokenized is not None:
            rows = preflight.tokenize_splits(examples, arguments["tokenizer"], changed)
            read = zip(rows.train.readable, tokenized, strict=True)
            given = tuple(row._replace(ids=tokens["input_ids"], labels=tokens["labels"]) for row, tokens in read)
            train = dataclasses.replace(rows.train, readable=given)
            arguments["examples"] = dataclasses.replace(rows, train=train)
        return preflight.check(config=changed, **arguments)

    return checked
