"""The figures show what the table says."""

import pytest
from matplotlib import pyplot

from ftkit import evaluation
from ftkit.decision import Approach, Decision, plot_approaches, plot_cost, plot_data_needed
from ftkit.evaluation import EvalReport


def report(name, count):
    rows = tuple({"id": str(i), "cluster": str(i), "prompt": "", "score": float(i < count)} for i in range(50))
    return EvalReport(name, {"score": evaluation.interval([row["score"] for row in rows])}, rows)


@pytest.fixture
def found():
    approaches = (
        Approach("zero_shot", report("zero_shot", 5), minutes_per_1000=1.0),
        Approach("fine_tune", report("fine_tune", 45), tuned=True, minutes_per_1000=1.0, setup_minutes=20.0),
    )
    return Decision(approaches, "score", curve=((100, report("100", 30)), (200, report("200", 45))))


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_every_approach_has_a_dot_at_its_score_and_the_chosen_one_is_filled(found):
    dots = [line for line in plot_approaches(found).lines if len(line.get_xdata()) == 1]
    assert [dot.get_xdata()[0] for dot in dots] == [0.1, 0.9]
    assert [dot.get_marker() for dot in dots] == ["o", "s"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False]


def test_cost_holds_what_is_spent_once(found):
    dots = [line for line in plot_cost(found).lines if len(line.get_xdata()) == 1]
    assert [dot.get_xdata()[0] for dot in dots] == [10.0, 30.0]


def test_the_learning_curve_goes_through_every_size(found):
    line = plot_data_needed(found).lines[0]
    assert list(line.get_xdata()) == [100, 200]
    assert list(line.get_ydata()) == [0.6, 0.9]


def test_a_decision_without_a_score_is_drawn_empty():
    empty = Decision((), "score")
    for plot in (plot_approaches, plot_cost, plot_data_needed):
        assert plot(empty).get_title(loc="left").endswith("?")
