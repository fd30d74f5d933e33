"""The settings notebook: each knob does what the text says, the search goes by its own record, and a config is left."""

import pytest

from ftkit import tuning
from ftkit.config import TrainConfig
from ftkit.lessons import check
from ftkit.runs import Run
from ftkit.training import History
from ftkit.tuning.study import SearchReport

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("08_configure")


@pytest.fixture(scope="module")
def config(book):
    """The config of the short runs: what the search started with."""
    return SearchReport.open(Run.open(book.run / "search")).config


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗ ") and "Overfitting" not in line] == []


def test_the_form_returns_its_defaults_without_a_front_end(book):
    assert "The settings are as they were" in book.text


def test_too_low_learns_less_than_right(book):
    low, right, high = SearchReport.open(Run.open(book.run / "rates")).trials
    assert right.value < 0.5 * low.value
    assert high.value is None or high.value > right.value


def test_the_marks_of_the_figure_are_joined_by_dashes(book):
    """One validation loss a run would be a lone mark, while the title speaks of dashes."""
    for trial in SearchReport.open(Run.open(book.run / "rates")).trials:
        assert trial.value is None or len(trial.history.val_losses) >= 2


def test_the_ramp_suggests_a_rate_below_the_blow_up(book):
    assert "the loss had climbed halfway back at" in book.page.read_text()
    assert 1e-4 < book.run.facts["configure"]["suggested_rate"] < 5e-3


def test_passes_over_few_rows_overfit(book):
    history = History.load(book.run / "passes/history.csv")
    assert "overfitting" in history.diagnosis.ids
    assert history.final_loss < 0.05
    assert [step for step, _ in history.val_losses] == [1, 2, 3, 4, 5, 6]
    assert "<td>0</td><td>not trained yet</td>" in book.page.read_text()


def test_the_warnings_of_the_found_settings_are_shown_and_three_of_them_answered(book):
    """The rows are short and few: back to the machine's own length, a batch of eight, and all rows."""
    page = book.page.read_text()
    for said in ("max_length=160 is below the usual", "4 examples stand behind each update", "Each row is read 3.3"):
        assert said in page
    chosen = TrainConfig.load(book.run / "config.yaml")
    assert (chosen.max_length, chosen.effective_batch_size) == (512, 8)


def test_both_ways_to_batch_eight_have_the_same_loss(book):
    assert "✓ difference between 8 × 1 and 2 × 4" in book.text


def test_a_warm_up_longer_than_the_run_never_reaches_its_rate(book):
    assert "rate at the end of 40 steps, warm-up 50, as a share of the peak: measured 0.8" in book.text
    assert "With a warm-up of 50 the rate ends at 80% of what was asked" in book.page.read_text()


def test_the_search_begins_with_the_config_or_draws_from_the_ramps_zone(book):
    report = SearchReport.open(Run.open(book.run / "search"))
    assert len(report.trials) == 3
    assert report.best_trial.state == "finished"
    for trial in report.trials:
        assert all(axis.holds(trial.settings[axis.field]) for axis in report.space)
        trial.run.require("history.csv")


def test_the_chosen_config_can_be_read_back(book):
    chosen = TrainConfig.load(book.run.require("config.yaml"))
    best = SearchReport.open(Run.open(book.run / "search")).best
    assert (chosen.learning_rate, chosen.lora_r, chosen.max_steps) == (best.learning_rate, best.lora_r, 40)
    assert book.run.facts["configure"]["chosen"]["learning_rate"] == best.learning_rate


def test_bad_settings_are_refused_with_a_suggestion_and_a_loud_adapter_is_warned_of(book):
    assert "learning_rte is no setting. Did you mean learning_rate?" in book.text
    assert "weight_decay=nan is outside" in book.text
    assert "lora_r=0 is outside 1 to 256" in book.text
    assert "lora_alpha / lora_r is 32, so the adapter" in book.page.read_text()


def test_every_row_of_the_table_was_measured(book):
    page = book.page.read_text()
    assert "not measured here" not in page
    assert page.count("data:image/png;base64") >= 5


def test_figures_are_left(book):
    for name in ("rates", "rate_range", "warmup", "search"):
        book.run.require(f"figures/{name}.png")
    page = book.page.read_text()
    for words in ("Loss of three runs", "The loss falls fastest", "With a warm-up of 50", "Validation loss of each"):
        assert f'alt="{words}' in page


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "steps = ...": "steps = 8",
    "warmup = ...": "warmup = 80",
    "own_space = ...": "own_space = {'lora_r': (8, 64), 'learning_rate': (1e-4, 1e-3)}",
}


def test_exercises_are_solved_by_the_hidden_solutions(book, config, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    names = {"config": config, "check": check, "tuning": tuning}
    exec(next(source for source in sources if "def schedule" in source).partition("schedules =")[0], names)
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
