"""Figures of memory say what the estimates say."""

import pytest

from ftkit import figures, memory
from ftkit.config import TrainConfig

LARGE = memory.find("meta-llama/Llama-3.1-8B")
DEAR = TrainConfig(load_in_4bit=False, backend="transformers", gradient_checkpointing=False, optim="adamw_torch")


def test_bars_are_as_long_as_the_estimate():
    runs = {"QLoRA": memory.estimate(LARGE), "LoRA": memory.estimate(LARGE, DEAR)}
    ax = memory.plot_parts(runs, gpus=[memory.gpu("T4")], room_gib=20.0, ax=figures.blank_axes())
    ends = {round(bar.get_y() + bar.get_height() / 2): 0.0 for bar in ax.patches}
    for bar in ax.patches:
        ends[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    assert sorted(ends.values()) == pytest.approx(sorted(run.likely_gib for run in runs.values()))
    assert {text.get_text() for text in ax.texts} == {"T4", "this machine"}
    assert "GiB" in ax.get_xlabel()


def test_lines_over_length_rise():
    ax = memory.plot_over_length(LARGE, {"QLoRA": TrainConfig()}, gpus=[memory.gpu("T4")], ax=figures.blank_axes())
    values = list(ax.get_lines()[0].get_ydata())
    assert values == sorted(values)
    assert "tokens" in ax.get_xlabel()
