"""Figures of data count what they show."""

from ftkit import figures
from ftkit.cleaning.plots import plot_lengths


def test_lengths_figure_counts_what_would_be_cut():
    ax = plot_lengths([10, 20, 300], max_length=100, ax=figures.blank_axes())
    assert "1 of 3 rows cut" in ax.get_legend().get_texts()[0].get_text()
