"""The LoRA notebook: by hand equal to PEFT, counts as published, and a rank that keeps most of a real update's gain."""

import pytest

from ftkit import lessons
from ftkit.lessons import check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("02_lora", max_steps=6, max_examples=6)


@pytest.fixture(scope="module")
def facts(book):
    return book.run.facts["lora"]


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗")] == []


def test_the_layer_by_hand_equals_pefts(facts):
    """Output and both gradients, within 1e-5."""
    assert set(facts["gaps"]) == {"output", "A's gradient", "B's gradient"}
    assert max(facts["gaps"].values()) < 1e-5


def test_parameters_are_those_of_the_published_adapters(facts):
    assert facts["parameters_smollm2"] == 4_884_480
    assert facts["parameters_llama"] == 41_943_040


def test_rank_16_keeps_most_of_the_gain(facts):
    assert 0.8 < facts["gain_kept_by_rank_16"] <= 1.05


def test_every_variant_was_trained(facts):
    """Targets at two rates, four switches, one mistake: all but the mistake start alike, and beat the base."""
    *rows, mistake = facts["variants"]
    assert len(rows) == 9
    assert [row["first_loss"] for row in rows] == pytest.approx([rows[0]["first_loss"]] * 9, abs=0.02)
    assert mistake["first_loss"] > rows[0]["first_loss"] + 0.1
    assert all(row["held_out_loss"] < 0.9 * facts["base_held_out_loss"] for row in rows)


def test_the_verdict_on_targets_turns_with_the_rate(facts):
    """At the small rate q and v take larger steps and are ahead; at one that suits both, all seven are."""
    held_out = {row["name"]: row["held_out_loss"] for row in facts["variants"]}
    assert held_out["q and v, rate 2e-4"] < held_out["all seven, rate 2e-4"]
    assert held_out["all seven, rate 2e-3"] < held_out["q and v, rate 2e-3"]
    assert held_out["all seven, rate 2e-3"] < 0.5 * held_out["all seven, rate 2e-4"]


def test_rslora_is_lora_with_a_larger_alpha(facts):
    named = {row["name"]: row["held_out_loss"] for row in facts["variants"]}
    assert named["r=36, rsLoRA"] == pytest.approx(named["r=36, alpha=96"], abs=0.02)
    assert named["r=36"] > 1.3 * named["r=36, rsLoRA"]


def test_figures_are_left_and_shown(book):
    for name in ("spectrum", "rank", "switches"):
        book.run.require(f"figures/{name}.png")
    page = book.page.read_text()
    assert page.count("data:image/png;base64") >= 3
    assert "No description has been provided" not in page


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text
    assert "incompatible" not in book.text


SOLUTIONS = {
    "small_adapter = ...": "small_adapter = 32 * 8 * ((4096 + 4096) + (4096 + 1024))",
    "new_alpha = ...": "new_alpha = 17",
    "merged = ...": "merged = W + 4 / 2 * trained_B @ trained_A",
}
MISTAKES = {
    "small_adapter = ...": "small_adapter = 8 * 4096",
    "new_alpha = ...": "new_alpha = 8",
    "merged = ...": "merged = W + trained_B @ trained_A",
}
TOY = {"W": (4, 4), "x": (8, 4), "trained_A": (2, 4), "trained_B": (4, 2)}


@pytest.mark.parametrize(("answers", "mark"), [(SOLUTIONS, "✓"), (MISTAKES, "✗")])
def test_exercises_know_right_from_wrong(book, capsys, answers, mark):
    """Each `...` of the notebook is replaced by an answer; every check must say what it is worth."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llama = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            )
        )
    toy = {name: torch.randn(shape) for name, shape in TOY.items()}
    names = {"check": check, "lessons": lessons, "torch": torch, "llama": llama, **toy}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    exec(next(source for source in sources if "def lora_linear" in source).split("\n\n")[0], names)
    for blank, answer in answers.items():
        exec(next(source for source in sources if blank in source).replace(blank, answer), names)
    assert capsys.readouterr().out.count(mark) == len(answers)
