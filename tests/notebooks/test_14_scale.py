"""The notebook on scale leaves two runs with one curve, a third that was not divided, and files for rented GPUs."""

import pytest
import yaml

from ftkit import lessons, memory
from ftkit.config import TrainConfig
from ftkit.lessons import check
from ftkit.runs import Run
from ftkit.training import History

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("14_scale", max_examples=40)


def curve(book, name):
    return History.load(book.root / name / "history.csv")


def test_two_processes_trained_the_curve_of_one(book):
    alone, together = curve(book, "scale"), curve(book, "scale-two")
    assert dict(together.losses) == pytest.approx(dict(alone.losses), abs=0.05)  # bf16 rounds what is added up
    assert dict(together.val_losses) == pytest.approx(dict(alone.val_losses), abs=0.05)
    facts = [Run.open(book.root / name).facts["train"]["processes"] for name in ("scale", "scale-two")]
    assert facts == [1, 2]


def test_the_undivided_run_made_half_as_many_updates(book):
    alone, undivided = curve(book, "scale"), curve(book, "scale-undivided")
    assert undivided.steps == -(-alone.steps // 2)
    assert "effective batch size 16, 8 in each of 2 processes" in book.text


def test_every_command_ended_well(book):
    assert book.text.count("✓ exit status: 0") == 2


def test_datatrove_kept_what_the_rule_keeps_but_for_single_pairs(book):
    kept, ours = (
        int(line.split()[0]) for line in book.text.splitlines() if line.endswith(("kept by datatrove", "in memory"))
    )
    assert abs(kept - ours) <= 0.02 * ours


def test_the_files_for_rented_gpus_are_there(book):
    assert TrainConfig.load(book.run.require("kaggle.yaml")).dtype == "fp16"
    assert yaml.safe_load(book.run.require("fsdp/sft.yaml").read_text())["bnb_4bit_quant_storage"] == "bfloat16"
    task = yaml.safe_load(book.run.require("task.yaml").read_text())
    assert TrainConfig.load(task["file_mounts"]["~/config.yaml"]).gradient_accumulation_steps == 1


def test_figures_are_left_and_described(book):
    for name in ("curves", "undivided"):
        book.run.require(f"figures/{name}.png")
    assert "No description has been provided" not in book.page.read_text()


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {"steps = ...": "steps = 2", "gpus = ...": "gpus = 4", "rate = ...": "rate = 2e-4"}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    shape = memory.find("unsloth/Llama-3.3-70B-Instruct")
    big = TrainConfig(per_device_train_batch_size=1, max_length=2048)
    need = memory.estimate(shape, big, backend="transformers", loss_path=memory.TRL_LOSS_PATH)
    names = {"check": check, "lessons": lessons, "need": need}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
