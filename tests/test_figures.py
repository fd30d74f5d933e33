"""Figures are written whole, and curves are smoothed without a false start."""

import pytest

from ftkit import figures


def test_save_writes_a_whole_png(tmp_path):
    assert figures.save(figures.blank_axes(), tmp_path / "figures/x.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert figures.smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])


def test_a_picture_is_shown_with_words_that_are_escaped(tmp_path):
    """Somebody's model name may stand in them."""
    found = figures.picture(figures.blank_axes(), tmp_path / "figures/x.png", 'bars of "<b>"')
    assert found.data.startswith(
        '<img alt="bars of &quot;&lt;b&gt;&quot;" width="700" src="data:image/png;base64,iVBOR'
    )
    assert (tmp_path / "figures/x.png").is_file()


def test_a_picture_is_not_shown_a_second_time(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figures.picture(figures.axes(None), tmp_path / "x.png", "An empty figure.")
    assert pyplot.get_fignums() == before
