"""Figures of the lessons: units on the axes, lines told apart without colour, numbers that agree with their input."""

import pytest

from ftkit import lessons
from ftkit.figures import blank_axes
from ftkit.lessons.backends import BackendRun, SideBySide
from ftkit.lessons.lora import Target
from ftkit.memory import estimate_setup

LAYERS = [Target("q", 64, 64), Target("v", 64, 32)]


def measured(name, tokens_per_s=100.0, peak_gib=2.0, losses=(2.0, 1.0), apart=1.1):
    """A run of two repeats that lie `apart`, around a median of `tokens_per_s`."""
    slow = 2 * tokens_per_s / (1 + apart)
    return BackendRun(name, "a machine", "2026-01-01", losses, (slow, apart * slow), peak_gib, 0, {})


@pytest.fixture(autouse=True)
def closed():
    """Pyplot keeps figures until they are closed."""
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def draw(name, ax):
    """Each figure that draws on a given `ax`, with small input."""
    return {
        "spectrum": lambda: lessons.plot_spectrum({"update": [4.0, 1.0, 0.0], "noise": [3.0, 2.9, 2.8]}, ax=ax),
        "rank_tradeoff": lambda: lessons.plot_rank_tradeoff(LAYERS, [2.0**-i for i in range(40)], r=8, ax=ax),
        "curves": lambda: lessons.plot_losses({"a": [2.0, 1.0], "b": [2.0, 1.5]}, ax=ax),
        "adapter_weight": lambda: lessons.plot_adapter_weight({0.0: 2.0, 1.0: 0.5}, 1.0, ax=ax),
        "by_length": lambda: lessons.plot_by_length(lessons.load_record("length").rows, ax=ax),
        "rounding": lambda: lessons.plot_rounding({"nf4": [0.09, 0.1], "int8": [0.01, 0.02]}, ax=ax),
    }[name]()


NAMES = ["spectrum", "rank_tradeoff", "curves", "adapter_weight", "by_length", "rounding"]


@pytest.mark.parametrize("name", NAMES)
def test_draws_where_it_is_told_and_gives_the_axes_back(name):
    ax = blank_axes()
    assert draw(name, ax) is ax


@pytest.mark.parametrize("name", NAMES)
def test_asks_a_question_and_labels_what_it_measures(name):
    ax = draw(name, blank_axes())
    assert "?" in ax.get_title(loc="left")
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize("name", ["spectrum", "curves", "by_length"])
def test_lines_differ_in_dash_or_marker(name):
    lines = [line for line in draw(name, blank_axes()).get_lines() if len(line.get_xdata()) > 2 or name == "curves"]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines) >= 2


def test_spectrum_shows_shares_of_the_largest():
    line = draw("spectrum", blank_axes()).get_lines()[0]
    assert list(line.get_ydata()) == [1.0, 0.25, 1e-9]


def test_rank_figure_names_the_marked_rank():
    """r=8: 8 * (128 + 96) parameters; halving values lose a quarter of the rest each."""
    assert "r=8: 100% kept" in (title := draw("rank_tradeoff", blank_axes()).get_title(loc="left"))
    assert title.endswith("0.00 M")


def test_adapter_weight_marks_the_factor():
    ax = draw("adapter_weight", blank_axes())
    assert "at 1: 0.500" in ax.get_title(loc="left")
    assert [line.get_xydata().tolist() for line in ax.get_lines()][-1] == [[1.0, 0.5]]


def test_by_length_computes_gains_and_draws_the_claim():
    """2,556 over 2,295 tokens/s is 11 % faster; 5 of 6 GB is a sixth less."""
    faster, saved, twice, sixty = draw("by_length", blank_axes()).get_lines()
    assert faster.get_ydata()[0] == pytest.approx(2556 / 2295 - 1)
    assert saved.get_ydata()[0] == pytest.approx(1 / 6)
    assert (twice.get_ydata()[0], sixty.get_ydata()[0]) == (1.0, 0.6)


def test_speed_ups_have_a_line_for_each_opponent_and_the_claim():
    ax = lessons.plot_speed_ups({"plain": [1.5, 3.0], "newer": [1.2]}, ax=blank_axes())
    plain, newer, claim, _ = ax.get_lines()
    assert (list(plain.get_xdata()), list(newer.get_xdata()), claim.get_xdata()[0]) == ([1.5, 3.0], [1.2], 2.0)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["plain", "newer"]


def test_by_length_leaves_out_what_ran_out_of_memory_and_says_so():
    ax = draw("by_length", blank_axes())
    assert len(ax.get_lines()[0].get_xdata()) == 6
    assert [text.get_text() for text in ax.texts] == ["plain: out\nof memory"]


def test_by_length_without_failures_has_no_grey_zone():
    ax = lessons.plot_by_length(lessons.load_record("length").rows[:6], ax=blank_axes())
    assert list(ax.texts) == []


def test_backends_answer_three_questions():
    """Speed, memory and loss, each with its unit; more runs than looks are drawn all the same."""
    side = SideBySide(tuple(measured(f"run {i}", 100 + i, 2 - i / 10) for i in range(6)))
    speed, memory, loss = lessons.plot_backends(side).figure.axes
    assert [ax.get_title(loc="left") for ax in (speed, memory, loss)] == [
        "Is it faster?",
        "Is it smaller?",
        "Does it learn the same?",
    ]
    assert (speed.get_xlabel(), memory.get_xlabel(), loss.get_ylabel()) == (
        "tokens/s, a stroke each repeat",
        "peak, GiB",
        "loss",
    )
    assert [bar.get_width() for bar in speed.patches] == pytest.approx([100, 101, 102, 103, 104, 105])
    assert len(loss.get_lines()) == 6


def test_backends_write_the_numbers_on_the_bars():
    """A speed only where the repeats agree; their strokes are drawn all the same."""
    runs = (measured("plain"), measured("Unsloth", 151.4, 1.234), measured("noisy", apart=1.3))
    speed, memory, _ = lessons.plot_backends(SideBySide(runs)).figure.axes
    assert [text.get_text() for text in speed.texts] == ["100", "151", "too noisy"]
    assert [text.get_text() for text in memory.texts] == ["2.00", "1.23", "2.00"]
    assert [len(line.get_xdata()) for line in speed.get_lines()] == [2, 2, 2]


def test_the_scatter_shows_every_point():
    points = lessons.measurements()[0]
    pairs = [(point, estimate_setup(point.shape, point.setup)) for point in points]
    ax = lessons.plot_against_measured(pairs, ax=blank_axes())
    drawn = sum(
        len(collection.get_offsets())
        for collection in ax.collections
        if len(collection.get_offsets()) > 1 or collection.get_label().endswith("runs")
    )
    assert drawn == len(points)


def test_the_bars_of_a_translation_add_up():
    counts = {"there": {"a field": 3, "kept": 2}, "back": {"a field": 4}}
    ax = lessons.plot_translation(counts, ax=blank_axes())
    assert [patch.get_width() for patch in ax.patches] == [3, 4, 2, 0]
    assert [patch.get_x() for patch in ax.patches] == [0, 0, 3, 4]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a field", "kept"]
