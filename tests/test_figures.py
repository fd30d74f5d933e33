"""Figures are written whole, and curves are smoothed without a false start."""

import base64

import pytest

from ftkit import figures


def test_save_writes_a_whole_png(tmp_path):
    assert figures.save(figures.blank_axes(), tmp_path / "figures/x.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert figures.smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])


def test_a_described_figure_is_saved_and_says_what_it_shows(tmp_path):
    ax = figures.axes(None)
    picture = figures.described(ax, tmp_path / "x.png", 'It falls below "two".')
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert 'alt="It falls below &quot;two&quot;."' in picture.data
    assert base64.b64encode((tmp_path / "x.png").read_bytes()).decode() in picture.data


def test_a_described_figure_is_not_shown_a_second_time(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figures.described(figures.axes(None), tmp_path / "x.png", "An empty figure.")
    assert pyplot.get_fignums() == before
