"""Guesses, checks and sliders answer back, and none stops a notebook."""

import pytest

from ftkit import lessons
from ftkit.lessons import exercises


@pytest.mark.parametrize(
    ("guess", "said"),
    [
        (None, "○ share: measured 0.52."),
        (0.5, "✓ share: you said 0.5, measured 0.52, which is close."),
        (0.9, "○ share: you said 0.9, measured 0.52."),
    ],
)
def test_prediction_answers_back(capsys, guess, said):
    """A guess that was off is no failure."""
    lessons.predict("share", guess).compare(0.52)
    assert capsys.readouterr().out == said + "\n"


def test_prediction_shows_itself_without_a_front_end(capsys):
    lessons.predict("share")._ipython_display_()


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (8, 8, True),
        (8.0000001, 8, True),
        (7, 8, False),
        (..., 8, False),
        (None, 8, False),
        ("a", "a", True),
        (3, lambda x: x > 2, True),
    ],
)
def test_check_says_whether_an_exercise_is_solved(capsys, answer, expected, right):
    assert lessons.check("exercise", answer, expected, hint="think") is right
    assert capsys.readouterr().out[0] in "✓✗○"


@pytest.mark.parametrize(("value", "seen"), [(0.1, True), (0.3, False), (float("nan"), False)])
def test_you_should_see_never_stops_the_notebook(capsys, value, seen):
    assert lessons.you_should_see("loss", value, 0, 0.2) is seen
    assert "loss" in capsys.readouterr().out


def test_explore_draws_once_with_the_defaults_without_a_person():
    drawn = []
    assert (
        lessons.explore(lambda r, kind: drawn.append((r, kind)) or "figure", r=([1, 2], 2), kind=(["a", "b"], "a"))
        == "figure"
    )
    assert drawn == [(2, "a")]


def test_explore_redraws_when_a_slider_moves(monkeypatch):
    """In a kernel with a front end each choice is a slider over its values."""
    monkeypatch.setattr(exercises, "front_end", lambda: True)
    drawn = []
    box = lessons.explore(lambda r: drawn.append(r), r=([1, 2, 4], 2))
    slider = box.children[0]
    assert (slider.value, list(slider.options)) == (2, [1, 2, 4])
    slider.value = 4
    assert drawn[-1] == 4


def test_a_measurement_that_is_too_noisy_makes_no_guess_wrong(capsys):
    lessons.predict("tokens/s", 3.0).compare(None)
    assert capsys.readouterr().out == "○ tokens/s: too noisy to read here, so no guess is right or wrong.\n"
