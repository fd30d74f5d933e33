"""Each run gets a panel with both of its curves and the units."""

from ftkit import curve_plots, plots
from ftkit.history import History, Point


def test_each_run_has_a_panel_with_its_curves():
    runs = {
        "A": History.of([Point(1, 2.0), Point(2, 1.0), Point(2, val_loss=1.5)]),
        "B": History.of([Point(1, 3.0), Point(2, 4.0)]),
    }
    smooth = plots.smooth
    axes = curve_plots.panels(runs, [plots.blank_axes(), plots.blank_axes()])
    assert [ax.get_title(loc="left") for ax in axes] == ["A", "B"]
    assert [[list(line.get_ydata()) for line in ax.lines] for ax in axes] == [
        [[2.0, 1.0], smooth([2.0, 1.0]), [1.5]],
        [[3.0, 4.0], smooth([3.0, 4.0])],
    ]
    assert axes[0].get_ylabel() == "loss, nats a token"
    assert axes[1].get_xlabel() == "weight updates"


def test_without_axes_it_makes_a_row_of_them():
    runs = {name: History.of([Point(1, 2.0)]) for name in "ABCD"}
    assert len(curve_plots.panels(runs)) == 4
