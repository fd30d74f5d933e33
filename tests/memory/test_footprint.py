"""The arithmetic itself: what grows with what, and setups that are none."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import memory
from ftkit.errors import ConfigError
from ftkit.memory import TrainingSetup

LARGE = memory.find("meta-llama/Llama-3.1-8B")


@settings(max_examples=20)
@given(st.integers(1, 64), st.integers(8, 4096))
def test_eager_attention_grows_with_the_square(batch, length):
    setup = TrainingSetup(
        method="lora", micro_batch=batch, length=length, target_modules=("q_proj",), eager=True, checkpointing=False
    )
    longer = dataclasses.replace(setup, length=2 * length)
    short, long = (memory.estimate_setup(LARGE, each)["attention scores"] for each in (setup, longer))
    assert long == pytest.approx(4 * short)


@pytest.mark.parametrize("name", ["micro_batch", "length", "r"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_setup_refuses_counts_that_are_none(name, value):
    with pytest.raises(ConfigError, match=f"{name}="):
        TrainingSetup(**{"method": "lora", "micro_batch": 1, "length": 8, "r": 8, name: value})


def test_the_peak_is_that_of_the_estimate():
    setup = TrainingSetup(method="full", micro_batch=1, length=512)
    assert memory.peak_gib(LARGE, setup) == pytest.approx(memory.estimate_setup(LARGE, setup).likely_gib)
