"""The training notebook ends with a healthy run, a killed run that equals it, and four broken runs told apart."""

import pytest

from ftkit.config import TrainConfig
from ftkit.lessons import check
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
    assert [
        line for line in book.text.splitlines() if line.startswith("✗ ") and "nats" in line and "wanted" in line
    ] == []
    assert "✓ training loss at the end" in book.text
    assert "✓ largest difference between the two adapters: 0" in book.text


def test_figures_are_left_and_shown(book):
    book.run.require("figures/loss.png")
    book.run.require("figures/broken.png")
    assert book.page.read_text().count("data:image/png;base64") >= 2


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "updates = ...": "updates = config.save_steps",
    "best_step = ...": "best_step = min(val, key=val.get)",
    "    return ...": "    return any(later > 2 * before for before, later in zip(losses, losses[1:]))",
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    histories = {name.replace("-", " "): History.load(book.root / f"train-{name}/history.csv") for name in BROKEN}
    names = {"check": check, "histories": histories, "config": TrainConfig.load(book.run / "config.yaml")}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
