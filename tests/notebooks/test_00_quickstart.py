"""The quickstart keeps its promise: near nothing before, at least nine in ten after, on invoices it never saw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftkit import data, evaluation
from ftkit.config import TrainConfig
from ftkit.hardware import detect
from ftkit.lessons import check
from ftkit.runs import Run
from ftkit.training import History

pytestmark = pytest.mark.slow
QUESTIONS = Path(__file__).parent / "harbour" / "questions.csv"


@pytest.fixture(scope="module")
def quickstart(execute):
    return execute("00_quickstart")


@pytest.fixture(scope="module")
def summary(quickstart):
    return json.loads(quickstart.run.require("eval/summary.json").read_text())


def test_base_fails_and_tuned_succeeds(summary):
    """At least 40 unseen invoices; base near 0, tuned at least 90 % exact match."""
    assert summary["before"]["rows"] == summary["after"]["rows"] >= 40
    assert summary["before"]["exact_match"]["value"] <= 0.05
    assert summary["after"]["exact_match"]["value"] >= 0.9


def test_unseen_layouts_are_measured_beside(summary):
    assert summary["after_unseen"]["rows"] >= 40
    assert 0.1 < summary["after_unseen"]["exact_match"]["value"] <= summary["after"]["exact_match"]["value"]


def test_fine_tuning_is_measured_against_a_base_that_was_shown_the_format(summary):
    """The third bar: the same prompts behind a rule and three solved invoices, on seen and on unseen layouts."""
    for ending in ("", "_unseen"):
        before, shown, after = (summary[name + ending] for name in ("before", "shown", "after"))
        assert before["rows"] == shown["rows"] == after["rows"]
        assert before["digest"] == shown["digest"] == after["digest"]
        assert shown["stopped"] > before["stopped"]
        assert before["exact_match"]["value"] < shown["exact_match"]["value"] < after["exact_match"]["value"]


def test_every_answer_stops(summary):
    assert summary["after"]["stopped"] == 1.0


def test_the_loss_fell_and_so_did_validation(quickstart):
    history = History.load(quickstart.run.require("history.csv"))
    assert history.final_loss < 0.2 * history.losses[0][1]
    assert history.val_losses[-1][1] < 0.2


def test_the_run_is_real_4bit_unsloth_within_the_promised_memory(quickstart):
    """Under 3 GiB; torch's CUDA build takes half a GiB by itself, and a CPU without bf16 keeps activations in fp32."""
    facts = quickstart.run.facts["train"]
    assert (facts["backend"], facts["base_model"]) == ("unsloth", "smollm2-135m-instruct")
    larger = torch.version.cuda is not None or not detect().bf16
    assert facts["peak_memory_gib"] < (3.6 if larger else 3)
    assert "load_in_4bit: true" in quickstart.run.require("config.yaml").read_text()


def test_everything_that_the_notebook_promises_is_left(quickstart):
    for name in (
        "adapter/adapter_model.safetensors",
        "data/train.jsonl",
        "eval/before.jsonl",
        "figures/loss.png",
        "figures/scores.png",
    ):
        quickstart.run.require(name)
    assert quickstart.run.facts["finished"] == ["train", "evaluate"]


def test_no_check_of_the_notebook_failed(quickstart):
    """`you_should_see` prints ✗ where a number is not as it should be; exercises are left open with ○.

    The deliberate mistake makes preflight's findings, whose lines begin with "✗ error".
    """
    failed = [line for line in quickstart.text.splitlines() if line.startswith("✗") and "[max_length]" not in line]
    assert failed == []
    assert quickstart.text.count("○ effective batch size: not tried") == 1


def test_the_deliberate_mistake_is_caught(quickstart):
    assert "No train row has a token that the loss sees" in quickstart.text


def test_the_page_holds_the_figures(quickstart):
    assert quickstart.page.read_text().count("data:image/png;base64") >= 2


SOLUTIONS = {
    "effective_batch_size = ...": "effective_batch_size = config.per_device_train_batch_size "
    "* config.gradient_accumulation_steps",
    "epochs = ...": "epochs = max_steps * config.effective_batch_size / len(splits.train)",
    "i_changed = ...": 'i_changed = "a price for both together"',
}


def test_exercises_are_solved_by_the_hidden_solutions(quickstart, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    config = TrainConfig.load(quickstart.run.require("config.yaml"))
    names = {
        "config": config,
        "max_steps": config.max_steps,
        "splits": data.split(data.load_examples("invoices")),
        "check": check,
        "evaluation": evaluation,
        "answer": "Products:\n- Copper Lamp: $25.00 (×2)",
        "wanted": "Products:\n- Copper Lamp: $12.50 (×2)",
    }
    sources = ["".join(cell["source"]) for cell in quickstart.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)


def test_no_warning_reaches_the_reader(quickstart):
    assert "Warning" not in quickstart.text


OWN = """
from ftkit import Run, models
from ftkit.config import TrainConfig

run, base_model, display = Run.open({run!r}), {model!r}, print
config = TrainConfig.load(run.require("config.yaml")).replace(max_steps=2, warmup_steps=0, eval_steps=0)
in_16bit = config.replace(load_in_4bit=False, backend="transformers")
my_file, my_columns, max_examples, seed = {file!r}, "question, answer", 4, 1
"""


def test_a_file_of_ones_own_is_trained_on_and_measured(quickstart, shallow):
    """The cells for it alone: two columns under other names; few rows, updates, layers: the way is tested.

    In a process of its own, as a kernel is one: Unsloth has to be imported before transformers.
    """
    sources = ["".join(cell["source"]) for cell in quickstart.cells if cell["cell_type"] == "code"]
    cells = [source for source in sources if source.startswith("from ftkit import Run") or "own_examples" in source]
    names = {"run": str(quickstart.run.path), "file": str(QUESTIONS), "model": str(shallow)}
    script = "\n".join([OWN.format(**names), *cells])
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    own = Run.open(quickstart.root / "quickstart-own")
    assert own.facts["finished"] == ["train", "evaluate"]
    own.require("adapter/adapter_model.safetensors")
    summary = json.loads(own.require("eval/summary.json").read_text())
    assert summary["before"]["digest"] == summary["after"]["digest"]
    assert summary["before"]["rows"] == summary["after"]["rows"] == 4
