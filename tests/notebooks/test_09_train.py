"""The training notebook ends with a healthy run, a killed run that equals it, and ten sick runs told apart."""

import html
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftkit.config import TrainConfig
from ftkit.lessons import check, sick_runs
from ftkit.runs import Run
from ftkit.training import History, diagnose

pytestmark = pytest.mark.slow
BROKEN = {
    "too-large-a-step": "diverging",
    "too-small-a-step": "flat",
    "eight-rows": "overfitting",
    "wrong-answers": "levelled",
}


@pytest.fixture(scope="module")
def book(execute):
    return execute("09_train")


def test_the_main_run_is_finished_and_healthy(book):
    assert diagnose(History.load(book.run / "history.csv")).ids == ("healthy",)
    facts = book.run.facts["train"]
    assert facts["applied_updates"] == facts["steps"] == 12
    assert "preflight" in facts


def test_the_killed_process_ended_by_a_kill_and_its_run_went_on_to_the_same_adapter(book):
    from safetensors.torch import load_file

    assert "ended by signal 9; finished: False" in book.text
    ours, theirs = (
        load_file(r / "adapter/adapter_model.safetensors") for r in (book.run, Run.open(book.root / "train-killed"))
    )
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6
    steps = [step for step, _ in History.load(book.root / "train-killed/history.csv").losses]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_run_is_read_for_what_it_is(book, name):
    run = Run.open(book.root / f"train-{name}")
    found = diagnose(History.load(run / "history.csv"), TrainConfig.load(run / "config.yaml"))
    assert found.ids[0] == BROKEN[name], str(found)


def test_going_on_with_another_step_size_is_refused_by_name(book):
    assert "learning_rate (0.0015 then, 0.0001 now)" in book.text


def test_a_lost_byte_is_seen(book):
    assert "adapter_model.safetensors has" in book.text


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗ ") and "normal" in line] == []
    assert "✓ training loss at the end" in book.text
    assert "✓ largest difference of the adapters: 0" in book.text


def test_its_own_settings_are_taken_where_the_lesson_on_settings_has_not_run(book):
    assert "Settings of this lesson: learning rate 0.0015" in book.text


def test_early_stopping_keeps_the_adapter_of_the_best_step(book):
    run = Run.open(book.root / "train-eight-rows")
    losses = dict(History.load(run / "history.csv").val_losses)
    assert run.facts["train"]["best_step"] == min(losses, key=losses.get) < max(losses)
    assert f"the adapter of update {run.facts['train']['best_step']} is kept" in book.text


def test_an_earlier_adapter_answers(book):
    assert "checkpoint-9 answers:" in book.text


def test_all_six_sick_runs_are_named_with_what_the_library_says(book):
    page = html.unescape(book.page.read_text())
    assert [name for name in sick_runs(42).names.values() if name not in page] == []
    for said in ("Nothing is trained", "Not a number from step", "logged as 0", "Overfitting from step"):
        assert said in page
    assert "(no-trained-tokens)" in book.text
    assert "(pad-is-stop)" in book.text
    assert "is WORSE than base" in page
    assert "8 exact and" in page
    assert "4-bit weights would round the adapter away" in book.text


def test_figures_are_left_and_shown_with_words(book):
    for name in ("loss", "broken", "sick"):
        book.run.require(f"figures/{name}.png")
    page = book.page.read_text()
    assert page.count("data:image/png;base64") >= 3
    assert 'alt="Four loss curves: A from' in page
    assert 'alt="Six loss curves' in page


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "updates = ...": "updates = 29",
    "lowest_at = ...": "lowest_at = min(val, key=val.get)",
    "    return ...": "    return any(later > 2 * before for before, later in zip(losses, losses[1:]))",
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    histories = {name.replace("-", " "): History.load(book.root / f"train-{name}/history.csv") for name in BROKEN}
    names = {"check": check, "broken": SimpleNamespace(histories=histories)}
    names["config"] = TrainConfig.load(book.run / "config.yaml")
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)


QUESTIONS = Path(__file__).parent / "harbour" / "questions.csv"


def test_ones_own_file_and_the_settings_of_the_lesson_before_are_taken(tmp_path):
    """The cells that read settings and rows, on a file of one's own and with a config.yaml beside."""
    cells = json.loads((Path(__file__).parents[2] / "notebooks/09_train.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"my_file": str(QUESTIONS), "my_columns": "question, answer", "run_root": str(tmp_path)}
    names |= {"base_model": "smollm2-135m-instruct", "max_steps": 12, "max_examples": 4, "seed": 42}
    TrainConfig(learning_rate=7e-4, lora_r=8, max_length=160).save(tmp_path / "configure/config.yaml")
    for start in ("import copy", "usual =", "columns ="):
        source = next(source for source in sources if source.startswith(start))
        exec(source.split("model, tokenizer = models.load")[0], names)
    assert (names["config"].learning_rate, names["config"].lora_r, names["config"].save_steps) == (7e-4, 8, 3)
    assert names["config"].max_length > 160
    assert names["splits"].train[0]["messages"][0]["content"].endswith("?")
