"""A loss figure has units, several runs can be told apart, and a bar stands in where there is no page."""

import math

from ftkit import figures, training
from ftkit.training import History, HistoryPoint
from ftkit.training.plots import live_loss

CURVE = [
    HistoryPoint(i, loss=2.0 / i, learning_rate=1e-4, tokens=100 * i, seconds=2.0 * i, memory_gib=1.0)
    for i in range(1, 11)
]
CURVE.append(HistoryPoint(10, val_loss=0.3, seconds=21.0, memory_gib=1.5))


def test_loss_figure_has_units_and_both_curves():
    ax = training.plot_loss(History.of(CURVE), ax=figures.blank_axes())
    assert "nats" in ax.get_ylabel()
    assert [line.get_label() for line in ax.get_lines()] == ["training, each step", "training, smoothed", "validation"]


def test_live_figure_falls_back_to_a_bar_outside_a_notebook(capsys):
    live = live_loss()
    live.start(10)
    for i in range(1, 11):
        live.update(CURVE[:i], 10)
    live.finish(CURVE, 10)
    live.close()
    assert "10/10" in capsys.readouterr().err


def test_each_run_has_a_panel_with_its_curves():
    runs = {
        "A": History.of([HistoryPoint(1, 2.0), HistoryPoint(2, 1.0), HistoryPoint(2, val_loss=1.5)]),
        "B": History.of([HistoryPoint(1, 3.0), HistoryPoint(2, 4.0)]),
    }
    smooth = figures.smooth
    axes = training.plot_curves(runs, [figures.blank_axes(), figures.blank_axes()])
    assert [ax.get_title(loc="left") for ax in axes] == ["A", "B"]
    assert [[list(line.get_ydata()) for line in ax.lines] for ax in axes] == [
        [[2.0, 1.0], smooth([2.0, 1.0]), [1.5], [1.0, 1.0]],
        [[3.0, 4.0], smooth([3.0, 4.0]), [4.0, 4.0]],
    ]
    assert axes[0].get_ylabel() == "loss (nats per token)"
    assert axes[1].get_xlabel() == "weight updates"


def test_without_axes_it_makes_a_row_of_them():
    runs = {name: History.of([HistoryPoint(1, 2.0)]) for name in "ABCD"}
    assert len(training.plot_curves(runs)) == 4


def test_more_than_four_stand_in_rows_of_three():
    runs = {name: History.of([HistoryPoint(1, 2.0)]) for name in "ABCDE"}
    axes = training.plot_curves(runs)
    assert [ax.get_subplotspec().colspan.start for ax in axes] == [0, 1, 2, 0, 1]


def test_a_loss_that_is_no_number_is_marked_where_it_would_be():
    lost = History.of([HistoryPoint(1, 2.0), HistoryPoint(2, math.nan), HistoryPoint(3, math.nan)])
    (ax,) = training.plot_curves({"lost": lost}, [figures.blank_axes()])
    assert list(ax.lines[-1].get_xdata()) == [2, 3]
    assert ax.lines[-1].get_label() == "not a number"


def test_compare_runs_draws_one_line_a_run_with_units():
    ax = training.plot_runs({"a": History.of(CURVE), "b": History.of(CURVE[:4])}, figures.blank_axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert "nats per token" in ax.get_ylabel()


def test_no_run_leaves_the_figure_of_several():
    """The first curve is the lowest: the others' losses still lie below the upper end."""
    runs = {"low": History.of([HistoryPoint(1, 0.5)]), "high": History.of([HistoryPoint(1, 3.0, val_loss=4.0)])}
    ax = training.plot_runs(runs, figures.blank_axes())
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 4
