"""Each run gets a panel with both of its curves and the units."""

from ftkit import figures, training
from ftkit.training import History, HistoryPoint


def test_each_run_has_a_panel_with_its_curves():
    runs = {
        "A": History.of([HistoryPoint(1, 2.0), HistoryPoint(2, 1.0), HistoryPoint(2, val_loss=1.5)]),
        "B": History.of([HistoryPoint(1, 3.0), HistoryPoint(2, 4.0)]),
    }
    smooth = figures.smooth
    axes = training.plot_curves(runs, [figures.blank_axes(), figures.blank_axes()])
    assert [ax.get_title(loc="left") for ax in axes] == ["A", "B"]
    assert [[list(line.get_ydata()) for line in ax.lines] for ax in axes] == [
        [[2.0, 1.0], smooth([2.0, 1.0]), [1.5]],
        [[3.0, 4.0], smooth([3.0, 4.0])],
    ]
    assert axes[0].get_ylabel() == "loss, nats a token"
    assert axes[1].get_xlabel() == "weight updates"


def test_without_axes_it_makes_a_row_of_them():
    runs = {name: History.of([HistoryPoint(1, 2.0)]) for name in "ABCD"}
    assert len(training.plot_curves(runs)) == 4
